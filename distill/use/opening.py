"""From a folder to a student: which kind of folder it is, told by its files' names, and what opens it."""

from __future__ import annotations

from pathlib import Path

from clip_models.spec import CONFIG_NAME, refuse_absent
from distill.export import FORMATS
from distill.run_folder import BEST, MODEL, RunFiles
from distill.use.encoders import Encoders
from distill.use.student import Student
from shards.errors import UserError
from shards.lazy import resolve

_DO = "Give a run's folder, a model's, an export's, or ARCH:TAG"


def load(student: str | Path, device: str | None = None) -> Student:
    """Open a student for use.

    `student`: a run's folder (its best model, where one was kept), a model's folder, a folder that `clipstill export`
    wrote in a format that can be computed here, or any other spec of `clip_models.load_model` (`ARCH:TAG`,
    `hf-hub:ORG/NAME`). `device`: of torch's, as `cuda:1`; by default the accelerator, where there is one. Exports for
    ONNX are computed without torch.

    Raises `UserError` if there is no such folder, or none of these kinds, or what opens it is not installed.
    """
    spec = _spec(student)
    opens = resolve(_opener(spec))
    encoders: Encoders = opens(Path(spec) if Path(spec).is_dir() else spec, device)
    return Student(str(student), encoders)


def refuse_unknown(student: str | Path) -> None:
    """Raise `UserError` unless `load` knows what to open it with; told from names of files alone."""
    _opener(_spec(student))


def _spec(student: str | Path) -> str:
    """A run's folder is its model's; a home is written out."""
    folder = Path(student).expanduser()
    if not RunFiles(folder).settings.is_file():
        return str(folder) if folder.is_dir() else str(student)
    models = [folder / name for name in (BEST, MODEL)]
    found = next((model for model in models if (model / CONFIG_NAME).is_file()), None)
    if found is None:
        do = "Let it come to its end: the same `clipstill distill` goes on"
        raise UserError("this run has no model yet", where=str(student), do=do)
    return str(found)


def _opener(spec: str) -> str:
    """`module:function` that opens it."""
    folder = Path(spec)
    if not folder.is_dir() or (folder / CONFIG_NAME).is_file():
        refuse_absent(spec)
        return "distill.use.by_torch:open_model"
    for name, form in FORMATS.items():
        if form.marks and all((folder / mark).exists() for mark in form.marks):
            if form.opens is None:
                raise UserError(f"an export as {name} cannot be computed here", where=spec, do=_DO)
            return form.opens
    raise UserError("this is no folder of a student", where=spec, do=_DO)
