"""From a spec to a teacher: which kinds there are, and which one a spec names. A kind is imported when it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clip_models.spec import refuse_absent
from shards.errors import UserError
from shards.lazy import resolve
from teacher_cache.teachers.settings import Forward, Towers

if TYPE_CHECKING:
    from teacher_cache.teachers.base import Teacher


@dataclass(frozen=True)
class TeacherKind:
    """`teacher`: `module:class`, made with spec, name (what follows the colon), `Forward` and towers.

    `form`: how a spec of the kind is written.
    """

    teacher: str
    form: str


TEACHERS: dict[str, TeacherKind] = {
    "transformers": TeacherKind(
        "teacher_cache.teachers.transformers_teacher:TransformersTeacher", "transformers:FOLDER_OR_ID (CLIP, SigLIP)"
    ),
    "sentence-transformers": TeacherKind(
        "teacher_cache.teachers.sentence_teacher:SentenceTeacher", "sentence-transformers:FOLDER_OR_ID (text only)"
    ),
    "python": TeacherKind(
        "teacher_cache.teachers.python_teacher:PythonTeacher",
        "python:package.module:Class (yours: methods embed_images and embed_texts, an image_size and, if it is no "
        "nn.Module, an identity)",
    ),
}
"""By the word before the colon. Any other spec is open_clip's."""

_OPEN_CLIP = TeacherKind(
    "teacher_cache.teachers.open_clip_teacher:OpenClipTeacher",
    "ARCH:TAG, ARCH:/path/to/weights, a folder in open_clip's layout or hf-hub:ORG/NAME (open_clip)",
)
SPEC_FORMS = f"A teacher is {', or '.join(kind.form for kind in [_OPEN_CLIP, *TEACHERS.values()])}"


def load_teacher(spec: str, forward: Forward = Forward(), towers: Towers = "both") -> Teacher:  # noqa: B008 - frozen
    """Load a teacher onto its device; `towers` frees the tower that is not asked for.

    `spec` has one of the forms in `SPEC_FORMS`; open_clip's are those of `clip_models.load_model`, a class of yours is
    described in `python_teacher`. Weights are read without executing code. The identity is that of the whole model,
    whichever towers are kept. Raises `UserError` if the spec has none of these forms, if the model cannot be found or
    read, or if it lacks the tower that `towers` names.
    """
    forward.torch_device()  # refused before anything slow is loaded
    name = refuse_spec(spec)
    kind = TEACHERS.get(spec.partition(":")[0], _OPEN_CLIP) if ":" in spec else _OPEN_CLIP
    teacher: Teacher = resolve(kind.teacher)(spec, name, forward, towers)
    return teacher


def refuse_spec(spec: str) -> str:
    """What follows the colon of a spec. Raises `UserError` if it names no model, or a path where nothing is."""
    kind, colon, name = spec.partition(":")
    if not spec or (colon and not name):
        raise UserError("the spec names no model", where=spec or "teacher", do=SPEC_FORMS)
    if colon and kind in TEACHERS:
        if kind != "python" and name.startswith((".", "/")) and not Path(name).is_dir():
            raise UserError("there is no such folder", where=spec)
    else:
        try:
            refuse_absent(spec)
        except UserError as error:
            raise UserError(error.problem, where=error.where, do=f"{error.do}. {SPEC_FORMS}") from None
    return name
