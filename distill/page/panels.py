"""Which figures of a log become curves, in which order; the same for one run and for several over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from distill.page.chart import Frame, Line, chart
from distill.page.run_folder import RunFolder

TITLES = {
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm, before it is clipped",
    "logit_scale": "logit scale",
    "prune/sparsity": "share of the prunable parameters left out",
    "prune/sparsity/vision": "of the image tower",
    "prune/sparsity/text": "of the text tower",
    "prune/target": "share asked for",
    "prune/penalty": "penalty (not in the loss above)",
    "prune/lambda1": "λ1",
    "prune/lambda2": "λ2",
    "measured/samples_per_second": "samples a second",
    "measured/waited": "share of the time that steps waited for data",
    "measured/memory_gb": "memory, GB",
}
_RANGE = 20
"""A loss whose highest value is so many times its median is drawn on a logarithmic axis."""


class Panel(NamedTuple):
    name: str
    title: str
    log: bool
    chart: Markup


class Section(NamedTuple):
    title: str
    note: str
    panels: list[Panel]


def figures(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """The figures that any of the runs has logged, by the section they belong to, in the order of the logs."""
    names = dict.fromkeys(name for run in runs for name in run.series)
    scheduled = ["lr", *(name for name in names if name.startswith("weight/"))]
    evaluated = [name for name in names if name.startswith("eval/")]
    stable = ["grad_norm", *(name for name in names if name.startswith("logit_"))]
    speed = ["measured/samples_per_second", "measured/waited", "measured/memory_gb"]
    pruned = [name for name in names if name.startswith("prune/")]
    others = {"loss", *pruned, *scheduled, *evaluated, *stable, *speed}
    terms = [name for name in names if name not in others and not name.startswith("measured/")]
    found = {
        "Loss": ["loss", *terms],
        "Evaluation": evaluated,
        "Pruning": pruned,
        "Learning rate and weights": scheduled,
    }
    found |= {"Stability": stable, "Speed": speed}
    return {section: [name for name in wanted if name in names] for section, wanted in found.items()}


def lower_is_better(name: str) -> bool:
    """Whether a figure of `eval/` counts down: ranks do, per cent do not. What is not evaluated is a loss."""
    return not name.startswith("eval/") or name.endswith("rank")


def title(name: str) -> str:
    return TITLES.get(name, name.removeprefix("eval/"))


def sections(runs: Sequence[RunFolder], frame: Frame) -> list[Section]:
    """Charts of everything that is logged; sections without any are left out."""
    notes = {
        "Loss": "Means over the steps between two lines of the log; terms are before their weights.",
        "Evaluation": "Per cent; of ranks fewer is better.",
    }
    found = []
    for section, names in figures(runs).items():
        panels = [_panel(name, runs, frame, is_loss=section == "Loss") for name in names]
        if panels:
            found.append(Section(section, notes.get(section, ""), panels))
    return found


def _panel(name: str, runs: Sequence[RunFolder], frame: Frame, *, is_loss: bool) -> Panel:
    lines = [
        Line(run=number, series=run.series[name], across=run.across)
        for number, run in enumerate(runs)
        if name in run.series
    ]
    log = name == "grad_norm" or (is_loss and _spans_far(lines))
    wide = {"width": 1000, "height": 280} if name == "loss" else {}
    return Panel(name, title(name), log, chart(lines, frame, log=log, **wide))


def _spans_far(lines: Sequence[Line]) -> bool:
    values = np.concatenate([line.series.values for line in lines])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > _RANGE * np.median(values))
