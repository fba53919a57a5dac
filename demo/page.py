"""The demo's page: one HTML file with nothing outside it - curves, pictures and failures."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from distill.run_folder import RunFiles, read_log
from shards import Dataset, Folder
from shards.fingerprint import seed64

_COLOURS = {"teacher": "#6b7280", "baseline": "#d97706", "distilled": "#2563eb"}
_SHEET = 24


def write_page(out: Path, results: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Write `index.html` in `out` from the demo's results; returns its path."""
    environment = Environment(
        loader=PackageLoader("demo", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    seeds = settings["seeds"]
    page = environment.get_template("page.html.j2").render(
        results=results,
        settings=settings,
        curves=_curves(out / "runs", seeds),
        scores=_score_chart(results["spread"]),
        speed_chart=_speed_chart(results["speed"]),
        sheet=_contact_sheet(out / "shards" / "train"),
        failures=_failures(out / "shards"),
    )
    Folder(out).publish("index.html", page.encode())
    return out / "index.html"


def _svg(figure: Figure) -> str:
    """A figure as inline SVG with text as text; equal figures give equal bytes."""
    sink = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "clipstill"}):
        figure.savefig(sink, format="svg", metadata={"Date": None})
    text = sink.getvalue()
    return text[text.index("<svg") :]


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
    return figure, axes


def _curves(runs: Path, seeds: list[int]) -> str:
    """The contrastive loss of every run, and the distilled runs' terms that come from the teacher."""
    figure, (task, teacher) = _axes(10, 3.6, columns=2)
    names = [("teacher", "teacher")] if (runs / "teacher").exists() else []
    names += [(kind, f"{kind}-{seed}") for seed in seeds for kind in ("baseline", "distilled")]
    labelled: set[str] = set()
    for kind, name in names:
        log = read_log(RunFiles(runs / name).log)
        label = kind if kind not in labelled else None
        labelled.add(kind)
        if all("contrastive" in line for line in log):
            steps = [line["step"] for line in log]
            task.plot(steps, [line["contrastive"] for line in log], color=_COLOURS[kind], label=label, lw=1.2)
    task.set(title="contrastive loss on the training scenes", xlabel="step", ylabel="nats")
    task.legend(frameon=False)
    for term, style in (("affinity", "-"), ("fd", "--")):
        for place, seed in enumerate(seeds):
            log = [line for line in read_log(RunFiles(runs / f"distilled-{seed}").log) if term in line]
            if log:
                first = log[0][term]
                teacher.plot(
                    [line["step"] for line in log],
                    [line[term] / first for line in log],
                    color=_COLOURS["distilled"],
                    ls=style,
                    lw=1.2,
                    label=term if place == 0 else None,
                )
    teacher.set(title="what the teacher asks for (relative to the first steps)", xlabel="step", ylim=(0, None))
    teacher.legend(frameon=False)
    return _svg(figure)


def _score_chart(spread: dict[str, Any]) -> str:
    figure, (axis,) = _axes(10, 3.4)
    for place, row in enumerate(spread.values()):
        axis.plot([place - 0.35, place + 0.35], [row["teacher"]] * 2, color=_COLOURS["teacher"], lw=2)
        for shift, kind in ((-0.17, "baseline"), (0.17, "distilled")):
            part = row[kind]
            reach = [[part["mean"] - part["low"]], [part["high"] - part["mean"]]]
            axis.bar(place + shift, part["mean"], 0.32, color=_COLOURS[kind], yerr=reach, capsize=3)
    axis.set_xticks(range(len(spread)), list(spread))
    axis.set(ylabel="% on the held-out scenes")
    for kind, label in (("teacher", "teacher"), ("baseline", "student, contrastive alone"), ("distilled", "distilled")):
        axis.plot([], [], color=_COLOURS[kind], lw=6 if kind != "teacher" else 2, label=label)
    axis.legend(frameon=False)
    return _svg(figure)


def _speed_chart(speed: dict[str, Any]) -> str:
    figure, (axis,) = _axes(10, 1.9)
    names = {"baseline": "plain CLIP", "cached": "distilled from the cache", "online": "teacher running online"}
    for place, (kind, name) in enumerate(reversed(names.items())):
        row = speed[kind]
        reach = [[row["median"] - row["low"]], [row["high"] - row["median"]]]
        colour = {"baseline": _COLOURS["baseline"], "cached": _COLOURS["distilled"]}.get(kind, _COLOURS["teacher"])
        axis.barh(place, row["median"], 0.6, xerr=reach, color=colour, capsize=3)
        axis.text(0, place + 0.33, name, fontsize=8, va="bottom")
    axis.set_yticks([])
    axis.set(xlabel="images a second of one training step (median, range)")
    return _svg(figure)


def _contact_sheet(shards: Path) -> list[dict[str, str]]:
    """Some samples as they lie in the shards: image as a data URL, caption, key."""
    dataset = Dataset.open(str(shards))
    cells = []
    for number in range(_SHEET):
        shard = dataset.shards[seed64("sheet", number) % len(dataset.shards)]
        row = seed64("row", number) % shard.count
        picture = base64.b64encode(shard.image_bytes(row)).decode()
        cells.append(
            {
                "image": f"data:image/jpeg;base64,{picture}",
                "caption": shard.caption(row),
                "key": shard.keys[row],
            }
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
