"""From a spec to a teacher: which kind it is."""

from __future__ import annotations

from shards import UserError
from teacher_cache.teachers.base import Forward, Teacher, Towers

SPEC_FORMS = (
    "A teacher is ARCH:TAG, ARCH:/path/to/weights, a folder or hf-hub:ORG/NAME (open_clip), "
    "transformers:FOLDER_OR_ID, sentence-transformers:FOLDER_OR_ID, or python:package.module:Class"
)


def load_teacher(spec: str, forward: Forward = Forward(), towers: Towers = "both") -> Teacher:  # noqa: B008 - frozen
    """Load a teacher onto its device; `towers` frees the tower that is not asked for.

    `spec` is one of

    - `ARCH:TAG`, `ARCH:/path/to/weights`, a folder in open_clip's layout (also `local-dir:FOLDER`) or
      `hf-hub:ORG/NAME`: see `clip_models.load_model`.
    - `transformers:FOLDER_OR_ID`: a CLIPModel or SiglipModel as transformers saves it.
    - `sentence-transformers:FOLDER_OR_ID`: text only; also the name of an installed package that ships one.
    - `python:package.module:Class`: a class of yours, see `python_teacher`.

    Weights are read without executing code. The identity is that of the whole model, whichever towers are kept.
    Raises `UserError` if the spec has none of these forms, if the model cannot be found or read, or if it lacks the
    tower that `towers` names.
    """
    kind, colon, name = spec.partition(":")
    if not spec or (colon and not name):
        raise UserError("the spec names no model", where=spec or "teacher", do=SPEC_FORMS)
    forward.torch_device()  # refused before anything slow is loaded
    if kind == "transformers" and colon:
        from teacher_cache.teachers.transformers_teacher import TransformersTeacher  # noqa: PLC0415 - slow imports

        return TransformersTeacher(spec, name, forward, towers)
    if kind == "sentence-transformers" and colon:
        from teacher_cache.teachers.sentence_teacher import SentenceTeacher  # noqa: PLC0415

        return SentenceTeacher(spec, name, forward, towers)
    if kind == "python" and colon:
        from teacher_cache.teachers.python_teacher import PythonTeacher  # noqa: PLC0415

        return PythonTeacher(spec, name, forward, towers)
    from teacher_cache.teachers.open_clip_teacher import OpenClipTeacher, is_open_clip  # noqa: PLC0415

    if not is_open_clip(spec):
        raise UserError("no kind of teacher has such a spec", where=spec, do=SPEC_FORMS)
    return OpenClipTeacher(spec, forward, towers)
