"""The model card of an export: what the model is, how it was trained, what it scores, how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_models import LoadedModel
from clip_models.measure import size_of
from distill.export import FORMATS
from distill.export.compare import has_text
from distill.export.lineage import began_from, data_in_words, in_words, run_of, short_name
from distill.export.markdown import table, without_folders
from distill.export.snippets import PICTURE, snippet
from distill.pruning.report import Pruned, pruned
from distill.report.words import in_short
from distill.run_folder import BEST, RunFolder
from shards.lazy import resolve

if TYPE_CHECKING:
    from distill.export.small import Losses

CARD_NAME = "README.md"
UNKNOWN = "unknown"
"""What the hub calls a licence that nobody has stated."""

_RESIZED = {
    "shortest": "the shorter side resized, the centre cropped",
    "longest": "the longer side resized, the rest filled",
    "squash": "both sides resized",
}
_UNKNOWN = "How it was trained is not known: it was not exported from a run."


def write_card(
    folder: Path,
    loaded: LoadedModel,
    kind: str,
    measured: Mapping[str, float],
    *,
    losses: Losses | None = None,
    checked: str | None = None,
) -> None:
    """Write `README.md` into the folder of an export of this `kind`, a key of `FORMATS`.

    If the model lies in a run's folder (`RUN/model`, `RUN/best`), the card has the run's data, teachers, settings,
    fingerprints and results, and what its weights began from, as far back as runs' folders are still there; it names no
    folder of this machine. `measured` as the export returns it; `losses` of its variants in fewer bits.
    `checked`: how it was, where the library that it is for could not run.
    """
    run = run_of(loaded.name)
    parts = [
        _front_matter(kind),
        f"# {_title(loaded, run)}",
        _summary(run),
        "## How to load it",
        f"In this folder, with a picture beside it called `{PICTURE}`:",
        f"```python\n{snippet(loaded, kind)}```",
        *([resolve(notes)(loaded)] if (notes := FORMATS[kind].notes) else []),
        "## The model",
        table(("", ""), _model_rows(loaded)),
        *(_pruned_parts(left) if (left := _left(loaded)) else []),
        *(_run_parts(run, best=Path(loaded.name).name == BEST) if run else ["## Training", _UNKNOWN]),
        *_checked(loaded, measured, checked),
        *(_fewer_bits(losses) if losses else []),
    ]
    (folder / CARD_NAME).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def state_licence(folder: Path, licence: str) -> None:
    """Write into a card, in place of `unknown`, under which licence the student is given away."""
    path = folder / CARD_NAME
    card = path.read_text(encoding="utf-8")
    path.write_text(card.replace(f"\nlicense: {UNKNOWN}\n", f"\nlicense: {licence}\n", 1), encoding="utf-8")


def _front_matter(kind: str) -> str:
    lines = [
        f"license: {UNKNOWN}",
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip, distillation, clipstill]",
    ]
    if (library := FORMATS[kind].library) is not None:
        lines.insert(0, f"library_name: {library}")
    return "\n".join(["---", *lines, "---"])


def _title(loaded: LoadedModel, run: RunFolder | None) -> str:
    """The run's name, else the model's."""
    left = _left(loaded)
    return (run.path.name if run else short_name(loaded.name)) + (f", pruned to {left.share:.0%}" if left else "")


def _left(loaded: LoadedModel) -> Pruned | None:
    return pruned(loaded.config, {"image": "vision", "text": "text"} if has_text(loaded.model) else {"image": "vision"})


def _pruned_parts(left: Pruned) -> list[str]:
    return [
        "### What pruning left",
        "Heads, MLP units and width were left out of a larger model, of each layer as many as it can spare."
        + "".join(f" The {tower} tower was not pruned." for tower in left.whole),
        table(*left.towers),
        table(*left.layers, numbers=True),
    ]


def _summary(run: RunFolder | None) -> str:
    if run is None:
        return "A CLIP model, exported by Clipstill."
    teachers = " and ".join(short_name(str(teacher.get("model", ""))) for teacher in _teachers(run))
    learned = f"distilled by Clipstill from {teachers}" if teachers else "trained by Clipstill"
    name = run.facts.get("dataset", {}).get("name")
    return f"A CLIP model, {learned}{f' on {name}' if name else ''}."


def _model_rows(loaded: LoadedModel) -> list[tuple[str, str]]:
    size = size_of(loaded.model)
    settings = loaded.config["preprocess_cfg"]
    side = settings["size"] if isinstance(settings["size"], int) else "x".join(map(str, settings["size"]))
    rows = [
        ("architecture", short_name(loaded.name)),
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


def _run_parts(run: RunFolder, *, best: bool) -> list[str]:
    return [*_results(run, best=best), *_training(run)]


def _training(run: RunFolder) -> list[str]:
    parts = ["## Training", table(("", ""), _training_rows(run))]
    teachers = _teachers(run)
    if teachers:
        heads = ("name", "model", "fingerprint", "embed_dim", "logit_scale")
        rows = [[_said(name, teacher.get(name, "")) for name in heads] for teacher in teachers]
        parts += ["Teachers, from their cached embeddings:", table([name.replace("_", " ") for name in heads], rows)]
    # Those that decide the weights, with defaults filled in; a run's identity leaves out places, logs and the like.
    settings = without_folders(run.identity.get("settings", {}))
    opened, closed = "<details><summary>Settings</summary>", "</details>"
    return [*parts, opened, f"```json\n{json.dumps(settings, indent=1)}\n```", closed]


def _training_rows(run: RunFolder) -> list[tuple[str, str]]:
    short = in_short(run)
    rows = {
        "run": f"`{run.path.name}`" + (f", by the recipe `{name}`" if (name := run.settings.get("recipe")) else ""),
        "pruning": _pruning(run),
        "data": data_in_words(run),
        "losses": short.get("losses", ""),
        "length": short.get("length", ""),
        "optimiser": short.get("optimiser", ""),
        "computed": short.get("computed", ""),
    }
    began = [
        (
            "which began from" if at else "began from",
            words + f"; the weights taken from it: `{weights}`" * bool(weights),
        )
        for at, (words, weights) in enumerate(began_from(run))
    ]
    known = [(name, text) for name, text in rows.items() if text]
    return [*known[:1], *began, *known[1:]]


def _pruning(run: RunFolder) -> str:
    prune = run.settings.get("prune")
    if not prune:
        return ""
    return f"{prune['target']:.0%} of the full model's attention and MLPs to be left out"


def _teachers(run: RunFolder) -> list[Mapping[str, Any]]:
    teachers: list[Mapping[str, Any]] = run.facts.get("teachers") or []
    return teachers


def _said(name: str, value: Any) -> str:
    return in_words(value) if name == "model" and value else f"{value:.4g}" if isinstance(value, float) else str(value)


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
    evaluation = run.settings.get("evaluation") or {}
    sets = [f"`{Path(one).name}`" for one in evaluation.get("on") or []]
    on = f"s {', '.join(sets)}" if len(sets) > 1 else f", {sets[0]}" if sets else ""
    kept = f" The step was chosen by `{found['metric']}`." if found else ""
    said = f"On the run's evaluation set{on}, after {step:,.0f} steps; R@K and top-K in percent.{kept}"
    return ["## Results", said, table(("", ""), rows)]


def _checked(loaded: LoadedModel, measured: Mapping[str, float], how: str | None) -> list[str]:
    texts = " and texts that are hard to tokenise" * has_text(loaded.model)
    counts = {name: value for name, value in measured.items() if isinstance(value, int)}
    rows = [(name.replace("_", " "), f"{value:.1e}") for name, value in measured.items() if name not in counts]
    usual = "The export was loaded again by the library that it is for, and compared with the original."
    parts = [
        "## How it was checked",
        how or usual,
        f"On random pixels, a picture{texts}. Largest differences, of embeddings of unit norm:",
        table(("", "difference"), rows),
    ]
    if counts:
        parts.append(
            f"Of the {counts['captions']} texts, {counts['captions_tokenised_differently']} are tokenised as open_clip "
            "does only after its cleaning of text (ftfy; HTML entities), which this library leaves out."
        )
    return parts


def _fewer_bits(losses: Losses) -> list[str]:
    """What each variant loses and saves."""
    first, rows = losses.rows[0], []
    for row in losses.rows:
        cells = [row.name, f"{row.size / 1e6:.2f}", f"{row.images[1]:.4f}, {row.images[0]:.4f}"]
        cells.append("-" if row.texts is None else f"{row.texts[1]:.4f}, {row.texts[0]:.4f}")
        if first.recall is not None and row.recall is not None:
            cells.append(f"{row.recall:.2f}" + (f" ({row.recall - first.recall:+.2f})" if row is not first else ""))
        rows.append([*cells, f"{row.image_ms:.1f}", "-" if row.text_ms is None else f"{row.text_ms:.1f}"])
    heads = ["", "MB", "cosine of images: mean, least", "of texts", "ms a picture", "ms a text"]
    if first.recall is not None:
        heads.insert(4, "R@1, %, both ways")
    told = f"Measured on {losses.measured_on}, by onnxruntime on the CPU of the machine that exported it."
    how = (
        f"Of 8 bits, {' and '.join(losses.calibrated)} were calibrated on {losses.calibrated_on}."
        if losses.calibrated
        else "Nothing was calibrated: 8 bits of weights, and activations measured as they come."
    )
    return ["## In fewer bits", f"{told} {how}", table(heads, rows)]


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"
