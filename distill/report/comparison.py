"""Several runs over each other on one page: curves, figures side by side, and in which settings they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.report.panels import figures, is_course, lower_is_better, sections, title
from distill.report.words import flat, state
from distill.run_folder import AXES, RunFolder
from pages import render
from pages.curves import Frame
from pages.words import say, say_hours
from shards import Folder, UserError
from shards.places import refuse_unwritable

STYLES = 18
"""Six colours, each solid, dashed and dotted: more curves than this cannot be told apart."""
_POINTS = 4000


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Draw 2 to 18 run folders over each other in the HTML page `out`; returns `out`.

    The page switches between optimiser steps, samples seen (step times global batch) and hours as each run measured
    them. A run that does not tell its samples or hours has no curve over these.

    Raises:
        UserError: a folder that holds no run, one that is given twice, too few or too many, `out` is a folder.
    """
    if not 2 <= len(runs) <= STYLES:
        raise UserError(
            f"{len(runs)} {'run was' if len(runs) == 1 else 'runs were'} given, a comparison needs 2 to {STYLES}",
            do="A single run has its own page, report.html in its folder" if len(runs) == 1 else "Give fewer",
        )
    twice = [str(run) for run, count in Counter(path.resolve() for path in runs).items() if count > 1]
    if twice:
        raise UserError("this run is given twice", where=twice[0], do="Give each run once")
    _refuse_no_page(out)
    read = [RunFolder.read(run) for run in runs]
    page = render(
        "distill.report",
        "comparison.html.j2",
        names=_names(runs),
        runs=read,
        sections=[section for section in sections(read, _frame(read)) if section.panels],
        axes=_frame(read).extents,
        table=_table(read),
        differing=differences(read),
    )
    Folder(str(out.parent)).publish(out.name, page)
    return out


def _refuse_no_page(out: Path) -> None:
    """A page may replace a page, and nothing else."""
    do = "Give a file for the page, such as compare.html"
    if out.is_dir():
        raise UserError("this is a folder", where=str(out), do=do)
    if out.exists():
        with out.open("rb") as file:
            if not file.read(16).lower().startswith(b"<!doctype html"):
                raise UserError("there is a file that is no page", where=str(out), do=do)
    refuse_unwritable(out.absolute().parent)


def differences(runs: Sequence[RunFolder]) -> dict[str, list[str | None]]:
    """The settings and facts that are not the same in all runs, by name in words; None where a run has none."""
    settings = [flat(run) for run in runs]
    names = dict.fromkeys(name for run in settings for name in run)
    rows = {name: [run.get(name) for run in settings] for name in names}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _frame(runs: Sequence[RunFolder]) -> Frame:
    extents = {}
    for axis in AXES:
        ends = [run.across(axis, series.steps[-1:]) for run in runs for series in run.series.values()]
        known = [float(end[0]) for end in ends if end is not None]
        if known or axis == "steps":
            extents[axis] = max(known, default=0.0)
    return Frame(extents=extents, points=min(1000, _POINTS // len(runs)))


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of their paths as tells them apart."""
    parts = [path.resolve().parts for path in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("two runs at one path")


def _table(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """One row a figure: for each run its last and best value, or its only one if it has no curve.

    Evaluation says which run is the best of all.
    """
    rows: list[dict[str, Any]] = [{"title": "state", "plain": [state(run) for run in runs]}]
    speeds = [run.last("measured/samples_per_second") for run in runs]
    hours = [float(run.hours.values[-1]) if len(run.hours.values) else None for run in runs]
    for name, values, words in (("samples a second, last", speeds, say), ("trained for", hours, say_hours)):
        if any(value is not None for value in values):
            rows.append({"title": name, "plain": [words(value) for value in values]})
    for section, names in figures(runs).items():
        for name in names:
            if section in ("Loss", "Evaluation"):
                rows.append(
                    {"title": title(name, runs), "cells": _cells(name, runs, evaluated=section == "Evaluation")}
                )
            elif not is_course(name, runs) and name != "measured/samples_per_second":
                rows.append({"title": title(name), "plain": [say(run.last(name)) for run in runs]})
    return rows


def _cells(
    name: str, runs: Sequence[RunFolder], *, evaluated: bool
) -> list[tuple[float | None, tuple[float, int] | None, bool]]:
    """For each run the last value of a figure, its best and that one's step, and whether no run has a better one."""
    lower = lower_is_better(name)
    best = [run.best(name, lower=lower) for run in runs]
    reached = [entry[0] for entry in best if entry]
    top = (min(reached) if lower else max(reached)) if reached and evaluated else None
    return [
        (run.last(name), entry, entry is not None and entry[0] == top) for run, entry in zip(runs, best, strict=True)
    ]
