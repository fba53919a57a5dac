"""Which figures of a log become curves, in which order; the same for one run and for several over each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from distill.run_folder import RunFolder, Series
from pages.curves import Frame, Line, curves

TITLES = {
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm, before it is clipped",
    "logit_scale": "logit scale",
    "prune/sparsity": "share of the prunable parameters left out",
    "prune/sparsity/vision": "share left out of the image tower",
    "prune/sparsity/text": "share left out of the text tower",
    "prune/target": "share asked for",
    "prune/penalty": "penalty (not in the loss above)",
    "prune/lambda1": "λ1, weight of the penalty",
    "prune/lambda2": "λ2, weight of the penalty",
    "aced/gap": "student's loss less the teachers', of a super-batch",
    "aced/gap_chosen": "the same, of what is trained on",
    "measured/samples_per_second": "samples a second",
    "measured/waited": "share of the time that steps waited for data",
    "measured/memory_gb": "memory, GB",
}
_NO_TERMS = ("aced/", "eval/", "measured/", "prune/", "weight/", "logit_")
"""What figures that are no terms of the loss begin with, but for those among the titles."""
_RANGE = 20
"""A loss whose highest value is so many times its median is drawn on a logarithmic axis."""


class Panel(NamedTuple):
    """A chart; `legend` is the looks and names of its lines, empty where these are the runs."""

    name: str
    title: str
    log: bool
    wide: bool
    legend: list[tuple[int, str]]
    chart: Markup


class Section(NamedTuple):
    """Charts, and the figures that have none."""

    title: str
    note: str
    panels: list[Panel]
    single: list[str]


class _Group(NamedTuple):
    """Figures that are drawn in one chart of a single run, on one scale: by name their looks and names there."""

    title: str
    wide: bool
    lines: dict[str, tuple[int, str]]


_GROUPS = {
    "prune/sparsity": _Group(
        TITLES["prune/sparsity"],
        True,
        {
            "prune/sparsity": (0, "left out"),
            "prune/target": (6, "asked for"),
            "prune/sparsity/vision": (1, "left out of the image tower"),
            "prune/sparsity/text": (2, "left out of the text tower"),
        },
    ),
    "prune/lambda1": _Group("weights of the penalty", False, {"prune/lambda1": (0, "λ1"), "prune/lambda2": (1, "λ2")}),
}
"""By the figure in whose place they are."""


def figures(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """The figures that any of the runs has logged, by the section they belong to, in the order of the logs."""
    names = dict.fromkeys(name for run in runs for name in run.series)
    scheduled = ["lr", *(name for name in names if name.startswith("weight/"))]
    evaluated = [name for name in names if name.startswith("eval/")]
    stable = ["grad_norm", *(name for name in names if name.startswith("logit_"))]
    speed = ["measured/samples_per_second", "measured/waited", "measured/memory_gb"]
    pruned = [name for name in names if name.startswith("prune/")]
    chosen = [name for name in names if name.startswith("aced/")]
    others = {"loss", *chosen, *pruned, *scheduled, *evaluated, *stable, *speed}
    terms = [name for name in names if name not in others and not name.startswith("measured/")]
    terms = terms if _alone(runs) is None else []
    found = {
        "Loss": ["loss", *terms],
        "Evaluation": evaluated,
        "Super-batches": chosen,
        "Pruning": pruned,
        "Learning rate and weights": scheduled,
    }
    found |= {"Stability": stable, "Speed": speed}
    return {section: [name for name in wanted if name in names] for section, wanted in found.items()}


def lower_is_better(name: str) -> bool:
    """Whether a figure of `eval/` counts down: ranks do, per cent do not. What is not evaluated is a loss."""
    return not name.startswith("eval/") or name.endswith("rank")


def is_course(name: str, runs: Sequence[RunFolder]) -> bool:
    """Whether any of the runs has logged a figure twice: one point is no curve."""
    return any(len(run.series[name].steps) > 1 for run in runs if name in run.series)


def title(name: str, runs: Sequence[RunFolder] = ()) -> str:
    """A figure's name in words; of the loss, what it is if it is one term's."""
    if name == "loss" and (alone := _alone(runs)):
        return f"loss: {alone}"
    if name.startswith("eval/"):
        return re.sub("[_/]", " ", name.removeprefix("eval/"))
    return TITLES.get(name, name)


def _alone(runs: Sequence[RunFolder]) -> str | None:
    """The terms of the loss in words if each run has one, with the same weight in all; else None.

    A term's curve would be the loss's again.
    """
    names, weights = [], set()
    for run in runs:
        terms = [name for name in run.series if not name.startswith(_NO_TERMS) and name not in TITLES]
        if "loss" not in run.series or len(terms) != 1:
            return None
        names.append(terms[0])
        weights.add(_ratio(run.series["loss"], run.series[terms[0]]))
    weight = weights.pop() if len(weights) == 1 else None
    words = " or ".join(dict.fromkeys(names))
    return words if weight == 1 else f"{weight:g} × {words}" if weight is not None else None


def _ratio(loss: Series, term: Series) -> float | None:
    """How many times the term the loss is, to four digits; None if that is not the same at every step."""
    if not np.array_equal(loss.steps, term.steps) or not len(term.steps):
        return None
    known = np.isfinite(loss.values) & np.isfinite(term.values) & (np.abs(term.values) > 1e-12)
    if not known.any() or not np.array_equal(np.isfinite(loss.values), np.isfinite(term.values)):
        return None
    ratios = loss.values[known] / term.values[known]
    middle = float(np.median(ratios))
    return float(f"{middle:.4g}") if np.allclose(ratios, middle, rtol=1e-4) else None


def sections(runs: Sequence[RunFolder], frame: Frame) -> list[Section]:
    """Charts of what was logged twice or more; sections of which nothing was logged are left out."""
    notes = {
        "Loss": "Means over the steps between two lines of the log; terms are before their weights.",
        "Evaluation": "Per cent; of ranks fewer is better.",
        "Pruning": "λ1 and λ2 are the weights of the penalty: of the share that is missing, and of its square. They "
        "rise while the share asked for is missed.",
    }
    # Of several runs the colours tell which run a line is of.
    groups = _GROUPS if len(runs) == 1 else {}
    inside = {name for first, group in groups.items() for name in group.lines if name != first}
    found = []
    for section, names in figures(runs).items():
        drawn = [name for name in names if is_course(name, runs)]
        panels = [
            _together(name, groups[name], runs[0], frame)
            if name in groups
            else _panel(name, runs, frame, is_loss=section == "Loss")
            for name in drawn
            if name not in inside
        ]
        if names:
            single = [name for name in names if name not in drawn]
            found.append(Section(section, notes.get(section, ""), panels, single))
    return found


def _panel(name: str, runs: Sequence[RunFolder], frame: Frame, *, is_loss: bool) -> Panel:
    lines = [_line(number, run, name) for number, run in enumerate(runs) if name in run.series]
    log = name == "grad_norm" or (is_loss and _spans_far(lines))
    wide = name == "loss"
    words = title(name, runs)
    return Panel(name, words, log, wide, [], curves(lines, frame, words, log=log, wide=wide))


def _together(name: str, group: _Group, run: RunFolder, frame: Frame) -> Panel:
    found = {name: look for name, look in group.lines.items() if is_course(name, [run])}
    # The first one lies over the others.
    lines = [_line(look, run, name) for name, (look, _) in reversed(found.items())]
    drawn = curves(lines, frame, group.title, wide=group.wide)
    return Panel(name, group.title, False, group.wide, list(found.values()), drawn)


def _line(look: int, run: RunFolder, name: str) -> Line:
    steps, values = run.series[name]
    return Line(look=look, steps=steps, values=values, across=run.across)


def _spans_far(lines: Sequence[Line]) -> bool:
    values = np.concatenate([line.values for line in lines])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > _RANGE * np.median(values))
