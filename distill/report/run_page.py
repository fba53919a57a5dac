"""The page of one run, finished or not: what is trained, how far it has come, its curves and what happened."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from distill.report.inheritance import inheritance
from distill.report.panels import Section, figures, lower_is_better, sections, title
from distill.report.words import in_short, state
from distill.run_folder import RunFolder
from pages import render
from pages.curves import Event, Frame
from shards import Folder

_EVENTS = 200


def write_run_page(run: Path) -> Path:
    """Write `report.html` into a run's folder, of what is there by now; returns its path. Equal folders, equal pages.

    Curves have at most 1,000 points, extremes among them, so the page stays below 2 MB however long the log is.

    Raises:
        UserError: the folder holds no run, or settings that are not JSON.
    """
    read = RunFolder.read(run)
    # What ended a run may have happened after its last line.
    end = max([read.step, *(event.step for event in read.events)])
    frame = Frame(extents={"steps": end}, events=[Event(*event) for event in read.events])
    notes = list(read.notes)
    left = _left_by_pruning(read, notes)
    drawn = sections([read], frame)
    page = render(
        "distill.report",
        "run.html.j2",
        name=run.resolve().name,
        run=read,
        inherited=inheritance(read, notes),
        notes=notes,
        state=state(read),
        rows=in_short(read),
        whole=json.dumps({"settings": read.settings, "facts": read.facts}, indent=1, ensure_ascii=False),
        best=_best(read),
        speed=_median(read, "measured/samples_per_second"),
        waited=_mean(read, "measured/waited"),
        hours=float(read.hours.values[-1]) if len(read.hours.values) else None,
        sections=drawn,
        tables={section.title: _table(read, section) for section in drawn},
        title=title,
        left=left,
        events=read.events[-_EVENTS:],
        kinds=Counter(event.kind for event in read.events),
    )
    Folder(str(run)).publish(read.files.page.name, page)
    return read.files.page


def _left_by_pruning(run: RunFolder, notes: list[str]) -> dict[str, str] | None:
    """What `pruning.json` says, None if there is none; if it cannot be read, `notes` has a sentence more."""
    path = run.files.hook("pruning")
    if not path.exists():
        return None
    # It needs torch, which other pages are spared.
    from distill.pruning.report import draw_architecture, in_words  # noqa: PLC0415

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return {"said": in_words(report), "drawn": draw_architecture(report)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        notes.append("pruning.json cannot be read, so nobody can tell what the masks have left.")
        return None


def _table(run: RunFolder, section: Section) -> list[tuple[str, float | None, tuple[float, int] | None]]:
    """The last and best values of a section's figures: of all that are evaluated, else of those without a curve."""
    names = figures([run])[section.title] if section.title == "Evaluation" else section.single
    return [(title(name, [run]), run.last(name), run.best(name, lower=lower_is_better(name))) for name in names]


def _best(run: RunFolder) -> tuple[str, float, int] | None:
    """The figure that the best checkpoint is kept by: its name, value and step."""
    done = (run.done or {}).get("best")
    if done:
        return done["metric"], done["value"], done["step"]
    metric = (run.settings.get("evaluation") or {}).get("best")
    if not isinstance(metric, str):
        return None
    found = run.best(metric, lower=lower_is_better(metric))
    return (metric, *found) if found else None


def _median(run: RunFolder, name: str) -> float | None:
    values = run.series[name].values if name in run.series else np.empty(0)
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _mean(run: RunFolder, name: str) -> float | None:
    values = run.series[name].values if name in run.series else np.empty(0)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
