"""The model card of an export: what the model is, how it was trained, what it scores, how it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_models import LoadedModel
from clip_models.measure import size_of
from distill.export.compare import has_text
from distill.export.snippets import PICTURE, snippet
from distill.page.run_folder import RunFolder

CARD_NAME = "README.md"

_LIBRARIES = {"open_clip": "open_clip", "transformers": "transformers", "onnx": "onnx"}
_RESIZED = {
    "shortest": "the shorter side resized, the centre cropped",
    "longest": "the longer side resized, the rest filled",
    "squash": "both sides resized",
}


def write_card(folder: Path, loaded: LoadedModel, kind: str, measured: Mapping[str, float]) -> None:
    """Write `README.md` into the folder of an export of this `kind`, a key of `FORMATS`.

    If the model lies in a run's folder (`RUN/model`, `RUN/best`), the card has the run's data, teachers, settings,
    fingerprints and results; it names no folder of this machine. `measured` as the export returns it.
    """
    run = _run_of(loaded.name)
    parts = [
        _front_matter(kind),
        f"# {_title(loaded, run)}",
        f"A CLIP model, {'trained' if run else 'exported'} by Clipstill.",
        "## The model",
        _table(("", ""), _model_rows(loaded)),
        *(_run_parts(loaded, run) if run else ["How it was trained is not known: it was not exported from a run."]),
        "## How to load it",
        f"In this folder, with a picture beside it called `{PICTURE}`:",
        f"```python\n{snippet(loaded, kind)}```",
        "## How it was checked",
        "The export was loaded again by the library that it is for, and compared with the original on random pixels, a "
        "picture and texts that are hard to tokenise. Largest differences, of embeddings of unit norm:",
        _table(("", "difference"), [(name.replace("_", " "), f"{value:.1e}") for name, value in measured.items()]),
    ]
    (folder / CARD_NAME).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _run_of(spec: str) -> RunFolder | None:
    folder = Path(spec.removeprefix("local-dir:")).absolute()
    if not folder.is_dir() or not (folder.parent / "settings.json").is_file():
        return None
    return RunFolder.read(folder.parent)


def _front_matter(kind: str) -> str:
    lines = ["pipeline_tag: zero-shot-image-classification", "tags: [clip, distillation, clipstill]"]
    if kind in _LIBRARIES:
        lines.insert(0, f"library_name: {_LIBRARIES[kind]}")
    return "\n".join(["---", *lines, "---"])


def _title(loaded: LoadedModel, run: RunFolder | None) -> str:
    name = str(run.settings.get("student", "")) if run else ""
    return Path(name or loaded.name.removeprefix("local-dir:")).name.removesuffix(".json")


def _model_rows(loaded: LoadedModel) -> list[tuple[str, str]]:
    size = size_of(loaded.model)
    settings = loaded.config["preprocess_cfg"]
    side = settings["size"] if isinstance(settings["size"], int) else "x".join(map(str, settings["size"]))
    rows = [
        ("embedding", f"{loaded.config['model_cfg']['embed_dim']} numbers"),
        ("image", f"{side} pixels; {_RESIZED[settings['resize_mode']]}, {settings['interpolation']}"),
        ("parameters, image tower", _millions(size.image)),
    ]
    if size.text is None:
        rows.append(("text tower", "none: it meets text embeddings that another model makes"))
    else:
        rows.append(("parameters, text tower", f"{_millions(size.text)} without its token embedding"))
    rows.append(("parameters, all", _millions(size.total)))
    rows.append(
        ("multiply-accumulates", f"{size.macs / 1e9:.2f} G for an image{' and a text' * has_text(loaded.model)}")
    )
    return rows


def _run_parts(loaded: LoadedModel, run: RunFolder) -> list[str]:
    data = run.facts.get("dataset", {})
    teachers = run.facts.get("teachers") or []
    parts = ["## Training", _table(("", ""), _training_rows(run, data))]
    if teachers:
        told = ("name", "model", "fingerprint", "embed_dim", "logit_scale")
        rows = [[_cell(teacher.get(key, "")) for key in told] for teacher in teachers]
        parts += ["Teachers, from their cached embeddings:", _table([key.replace("_", " ") for key in told], rows)]
    # Those that decide the weights, with defaults filled in; a run's identity leaves out places, logs and the like.
    settings = _without_folders(run.identity.get("settings", {}))
    parts += ["Settings:", f"```json\n{json.dumps(settings, indent=1)}\n```"]
    return parts + _results(run, best=Path(loaded.name).name == "best")


def _training_rows(run: RunFolder, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("student", _cell(run.settings.get("student", ""))),
        *([("recipe", _cell(run.settings["recipe"]))] if run.settings.get("recipe") else []),
        ("data", f"{data.get('name', '?')}, {data.get('samples', '?')} samples, content {data.get('content', '?')}"),
        ("steps", str(run.planned)),
        ("batch", str(run.settings.get("batch_size", "?"))),
    ]
    if run.settings.get("initial"):
        rows.insert(1, ("began from", f"{_cell(run.settings['initial'])}, weights {run.identity.get('initial')}"))
    per_epoch = run.facts.get("steps_per_epoch")
    if per_epoch and run.planned:
        rows.append(("epochs", f"{run.planned / per_epoch:.3g}"))
    versions = run.facts.get("versions", {})
    if versions:
        rows.append(("with", ", ".join(f"{name} {number}" for name, number in versions.items())))
    return rows


def _results(run: RunFolder, *, best: bool) -> list[str]:
    """The evaluations at the step that the model is of: the last, or the best one's."""
    found = (run.done or {}).get("best") if best else None
    step = float(found["step"]) if found else float(run.step)
    rows = []
    for name, series in run.series.items():
        at = series.steps == step
        if name.startswith("eval/") and at.any():
            rows.append((name.removeprefix("eval/"), f"{series.values[at][-1]:.4g}"))
    if not rows:
        return ["## Results", "The run was not evaluated."]
    kept = f" The step was chosen by `{found['metric']}`." if found else ""
    return ["## Results", f"On the run's evaluation set, after {step:.0f} steps.{kept}", _table(("", ""), rows)]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(_without_folders(value))


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _without_folders(value: Any) -> Any:
    """Of paths that begin at this machine's root or home, also in specs (`ARCH:/path/to/weights`), the last part."""
    if isinstance(value, Mapping):
        return {name: _without_folders(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(part) for part in value]
    return re.sub(r"(^|:)[~/].*/", r"\1", value) if isinstance(value, str) else value


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
