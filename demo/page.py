"""The demo's page: one HTML file with nothing outside it - curves, pictures and failures."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from markupsafe import Markup

from distill.run_folder import RunFolder
from pages import render
from pages.curves import Frame, Line, curves
from pages.sheet import drawn, thumbnail
from pages.words import say_ratio
from shards import Dataset, Folder

_KINDS = {"distilled": "distilled", "baseline": "contrastive alone", "teacher": "teacher"}
"""In the order of their looks."""
_STEPS = {"baseline": "plain CLIP", "cached": "distilled from the cache", "online": "teacher running online"}
_TERMS = ("affinity", "fd")
_SHEET = 24


def write_page(out: Path, results: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Write `index.html` in `out` from the demo's results; returns its path."""
    speed = results["speed"]
    page = render(
        "demo",
        "page.html.j2",
        results=results,
        settings=settings,
        kinds=_KINDS,
        steps=_STEPS,
        terms=_TERMS,
        ratios={kind: say_ratio(speed[kind], speed["baseline"]) for kind in ("cached", "online")},
        losses=_losses(out / "runs", settings["seeds"]),
        asked=_asked_by_the_teacher(out / "runs", settings["seeds"]),
        sheet=_contact_sheet(out / "shards" / "train"),
        failures=_failures(out / "shards"),
    )
    Folder(out).publish("index.html", page)
    return out / "index.html"


def _losses(runs: Path, seeds: list[int]) -> Markup:
    """The contrastive loss of every run, which all but a teacher from elsewhere have."""
    names = [("teacher", "teacher")] if (runs / "teacher").exists() else []
    names += [(kind, f"{kind}-{seed}") for seed in seeds for kind in ("baseline", "distilled")]
    found = [(kind, RunFolder.read(runs / name).series.get("contrastive")) for kind, name in names]
    looks = list(_KINDS)
    lines = [Line(look=looks.index(kind), steps=series.steps, values=series.values) for kind, series in found if series]
    return _drawn(lines, "contrastive loss over the steps")


def _asked_by_the_teacher(runs: Path, seeds: list[int]) -> Markup:
    """The distilled runs' terms that come from the teacher, relative to their first values."""
    lines = []
    for seed in seeds:
        series = RunFolder.read(runs / f"distilled-{seed}").series
        lines += [
            Line(look=look, steps=series[term].steps, values=series[term].values / series[term].values[0])
            for look, term in enumerate(_TERMS)
            if term in series
        ]
    return _drawn(lines, "what the teacher asks for over the steps")


def _drawn(lines: list[Line], label: str) -> Markup:
    end = max((float(line.steps[-1]) for line in lines), default=0.0)
    return curves(lines, Frame(extents={"steps": end}), label) if lines else Markup()


def _contact_sheet(shards: Path) -> list[dict[str, str]]:
    """Some samples as they lie in the shards: image as a data URL, and caption."""
    dataset = Dataset.open(str(shards))
    cells = []
    for place, row in drawn([shard.count for shard in dataset.shards], dataset.name, _SHEET):
        shard = dataset.shards[place]
        cells.append(
            {"image": thumbnail(shard.image_bytes(row)), "caption": shard.caption(row), "key": shard.keys[row]}
        )
    return cells


def _failures(shards: Path) -> list[dict[str, Any]]:
    """Every cause in the ledgers with its count and one example."""
    counts: dict[str, int] = defaultdict(int)
    examples: dict[str, dict[str, str]] = {}
    for ledger in sorted(shards.glob("*/[0-9]*.parquet")):
        table = pq.read_table(ledger, columns=["key", "url", "error_class", "error_message"])
        for row in table.filter(pc.is_valid(table["error_class"])).to_pylist():
            counts[row["error_class"]] += 1
            examples.setdefault(row["error_class"], row)
    order = sorted(counts, key=lambda cause: -counts[cause])
    return [{"cause": cause, "count": counts[cause], **examples[cause]} for cause in order]
