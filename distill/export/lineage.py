"""What a run's student is, and what its weights began from, run by run as far as their folders are still there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import open_clip

from clip_models.spec import TIMM
from distill.export.markdown import without_folders
from distill.run_folder import BEST, MODEL, RunFiles, RunFolder
from shards.errors import UserError

_DELIVERED = (MODEL, BEST)


def run_of(spec: str, base: Path | None = None) -> RunFolder | None:
    """The run in whose folder a model's folder lies (`RUN/model`, `RUN/best`); None if there is none, or not any more.

    `base`: where a relative path begins, by default the working directory.
    Raises `UserError` if that run's settings are not JSON.
    """
    folder = _path(spec, base).absolute()
    if not folder.is_dir() or not RunFiles(folder.parent).settings.is_file():
        return None
    return RunFolder.read(folder.parent.resolve())


def architecture(spec: str, base: Path | None = None, after: frozenset[Path] = frozenset()) -> str:
    """The name of the architecture that `create_student` makes of `spec`: of a run's model, of that run's student.

    Where no run can be asked any more, the name of the file or folder; one called like a run's, its parent's.
    `after`: runs that are on the way already, so that a folder which was used again ends the way.
    """
    run = _earlier(spec, base, after)
    if run is not None and run.settings.get("student"):
        return architecture(str(run.settings["student"]), _working_directory(run), after | {run.path})
    name = spec.replace("/", "-")
    if spec.startswith(TIMM) or open_clip.get_model_config(name) is not None:
        return spec if spec.startswith(TIMM) else name
    folder, name = _last_parts(spec, base)
    return folder if folder and name in _DELIVERED else name.removesuffix(".json")


def short_name(spec: str) -> str:
    """A spec of `load_model` for a heading: a folder's architecture, else the spec."""
    folder = spec.startswith("local-dir:") or Path(spec).is_dir()
    return architecture(spec) if folder else str(without_folders(spec))


def began_from(run: RunFolder) -> Iterator[tuple[str, str]]:
    """What the run's student began from, then what that one began from, and so on, in words without folders.

    With each the fingerprint of the weights that the later student had before its first step.
    """
    after: frozenset[Path] = frozenset()
    while run.settings.get("initial"):
        spec, base = str(run.settings["initial"]), _working_directory(run)
        after |= {run.path}
        yield in_words(spec, base, after), str(run.identity.get("initial") or "")
        earlier = _earlier(spec, base, after)
        if earlier is None:
            return
        run = earlier


def in_words(spec: str, base: Path | None = None, after: frozenset[Path] = frozenset()) -> str:
    """A spec of `load_model` in words: a run's model by its run."""
    run = _earlier(spec, base, after)
    if run is not None:
        return _run_in_words(run, after)
    if ":" in spec.removeprefix("local-dir:") and not _path(spec, base).is_dir():
        return str(without_folders(spec))
    folder, name = _last_parts(spec, base)
    if name not in _DELIVERED or not folder:
        return f"the model folder `{name}`"
    return f"the `{name}` of a run `{folder}`, of which no more is known"


def _run_in_words(run: RunFolder, after: frozenset[Path]) -> str:
    recipe, prune = run.settings.get("recipe"), run.settings.get("prune")
    named = f"run `{run.path.name}`" + (f" (recipe `{recipe}`)" if recipe else "")
    student = run.settings.get("student")
    of = f" of {architecture(str(student), _working_directory(run), after | {run.path})}" if student else ""
    steps = f"{run.planned:,} steps" if run.planned else ""
    on = f"on {known}" if (known := data_in_words(run)) else ""
    pruning = f"pruning ({prune['target']:.0%} to be left out)" if isinstance(prune, dict) and "target" in prune else ""
    return ", ".join(part for part in (named + of, pruning, " ".join(part for part in (steps, on) if part)) if part)


def data_in_words(run: RunFolder) -> str:
    """The dataset that a run trained on, in words; empty if the run does not tell."""
    facts = run.facts.get("dataset")
    if not isinstance(facts, dict) or "name" not in facts:
        return ""
    samples, content = facts.get("samples"), facts.get("content")
    words = [f"{samples:,} samples"] if isinstance(samples, int) else []
    words += [f"content `{content}`"] if content else []
    return f"{facts['name']} ({', '.join(words)})" if words else str(facts["name"])


def _earlier(spec: str, base: Path | None, after: frozenset[Path]) -> RunFolder | None:
    try:
        run = run_of(spec, base)
    except (UserError, OSError):  # its settings cannot be read any more
        return None
    return None if run is None or run.path in after else run


def _working_directory(run: RunFolder) -> Path:
    """Where the run was started, which its relative paths begin at, if its own path still tells; else where we are."""
    out = Path(str(run.settings.get("out", ""))).parts
    ours = run.path.parts
    return Path(*ours[: -len(out)]) if ours[-len(out) :] == out and ours != out else Path.cwd()


def _path(spec: str, base: Path | None) -> Path:
    return (base or Path.cwd()) / spec.removeprefix("local-dir:")


def _last_parts(spec: str, base: Path | None) -> tuple[str, str]:
    path = _path(spec, base).absolute()
    return path.parent.name, path.name
