"""A run's folder: the name of everything in it, how it is written, and how it is read. Needs no torch.

`RunFiles` is where a run writes, and where who knows what to look for reads; `RunFolder` is all that a folder says, for
pages and cards: there, what is missing or cut off is noted, not fatal. `docs/formats.md` has the layout.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shards import Folder, UserError
from shards.places import what_is_at

MODEL, BEST = "model", "best"
"""Folders of the student that a run delivers, and of the best one."""
BEGINNINGS = {"settings.json", "inheritance.json", "ray"}
"""What a run writes first: a folder that holds none of these, but something else, is no run's."""
_ROWS = 10_000

Values = npt.NDArray[np.float64]

AXES = ("steps", "samples", "hours")
"""What curves can be drawn over: optimiser steps, samples seen, hours that the training processes ran."""


class Series(NamedTuple):
    """One figure of a log. `steps` (n,) ascending and `values` (n,), float64; NaN where none was logged."""

    steps: Values
    values: Values


class Event(NamedTuple):
    """Something that happened to a run, at a step."""

    step: float
    kind: str
    text: str


@dataclass(frozen=True)
class Result:
    """A finished run: `model` is the student's open_clip folder, `loss` the mean of the last logged interval.

    `samples_per_second` covers the steps of this call alone and is None if there were none. `best`: the step, metric
    and value of the best checkpoint, whose model is in `best/`; None if none was asked for.
    """

    model: str
    steps: int
    loss: float
    samples_per_second: float | None
    best: dict[str, Any] | None = None


class RunFiles:
    """Where everything of the run in the folder `path` lies. What is published appears whole or not at all."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.log = self.path / "log.jsonl"
        self.events = self.path / "events.jsonl"
        self.inheritance = self.path / "inheritance.json"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.ray = self.path / "ray"
        self.asked = self.path / ".asked"
        self.model, self.best = self.path / MODEL, self.path / BEST
        self.page = self.path / "report.html"
        self.done = self.path / "done.json"

    def hook(self, name: str) -> Path:
        """What a hook of the steps says of the student: `pruning.json`."""
        return self.path / f"{name}.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{step:08d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the checkpoints there are, ascending."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(path.name) for path in self.checkpoints.iterdir() if path.name.isdigit())

    def begin(self, identity: Mapping[str, Any], settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Make the folder this run's: `settings.json`."""
        self._publish(self.settings, json.dumps({"identity": identity, "settings": settings, "facts": facts}, indent=1))

    def report(self, hook: str, found: Mapping[str, Any]) -> None:
        """Say what a hook has made of the student."""
        self._publish(self.hook(hook), json.dumps(found, indent=1))

    def end(self, steps: int, loss: float, best: Mapping[str, Any] | None) -> None:
        """Say that the run has ended: `done.json`, to be written last."""
        self._publish(self.done, json.dumps({"steps": steps, "loss": loss, "best": best}))

    def _publish(self, path: Path, text: str) -> None:
        Folder(self.path).publish(path.name, text.encode())

    def identity(self) -> dict[str, Any] | None:
        """What decides the weights of the run that is here, None if there is none. Raises `UserError` if it is lost."""
        try:
            found = json.loads(self.settings.read_bytes())["identity"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"not the settings of a run ({error})", where=str(self.settings), do="Give another --out"
            ) from None
        return found if isinstance(found, dict) else {}

    def ended(self) -> dict[str, Any] | None:
        """`steps`, `loss` and `best` of a run that has ended and still has what it delivers, else None."""
        if not self.done.exists():
            return None
        done: dict[str, Any] | None = json.loads(self.done.read_text())
        folders = [self.model, self.best] if done and done["best"] else [self.model]
        return done if all(folder.is_dir() for folder in folders) else None

    def cut_log(self, step: int) -> None:
        """Leave out of the log what lies beyond a step."""
        kept = [line for line in read_log(self.log) if line["step"] <= step]
        temporary = self.path / f".{self.log.name}.tmp"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self.log)

    def add_event(self, step: int, kind: str, text: str) -> None:
        """Tell what happened after `step` steps, in one line."""
        with self.events.open("a") as file:
            file.write(json.dumps({"step": step, "kind": kind, "text": text}) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log as they were written, up to the first that is none; of no file, none."""
    return list(_lines(path, []))


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run as far as it has come.

    `series` by name as in the log, nested names joined by `/` (`measured/waited`). `done` is None until the run has
    ended. `notes` are sentences about what is not there or not whole.
    """

    path: Path
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    identity: Mapping[str, Any]
    series: Mapping[str, Series]
    events: tuple[Event, ...]
    done: Mapping[str, Any] | None
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Raises `UserError` if the folder holds no run, or settings that are not JSON."""
        files = RunFiles(path)
        if not files.settings.is_file() and not files.log.is_file():
            told = f"no run in this folder: this is {what_is_at(Folder(path))}"
            raise UserError(told, where=str(path), do="Give what `clipstill distill` wrote")
        notes: list[str] = []
        written = _read_object(files.settings)
        if written is None:
            notes.append("settings.json is missing, so nobody can tell what was trained.")
        elif not _mapping(written.get("facts")):
            notes.append("settings.json has no facts about student, data and teachers; it was written by an older run.")
        series = _read_series(files.log, notes)
        if not series:
            notes.append("The log has no lines yet, so there are no curves.")
        return cls(
            path=path,
            settings=_mapping((written or {}).get("settings")),
            facts=_mapping((written or {}).get("facts")),
            identity=_mapping((written or {}).get("identity")),
            series=series,
            events=tuple(_read_events(files.events, notes)),
            done=_read_object(files.done),
            notes=tuple(notes),
        )

    @property
    def files(self) -> RunFiles:
        """Where the rest lies."""
        return RunFiles(self.path)

    @property
    def step(self) -> int:
        """The last step that was logged, 0 if none was."""
        return int(max((series.steps[-1] for series in self.series.values()), default=0))

    @property
    def planned(self) -> int | None:
        """How many steps the run is to have, if that is known."""
        for steps in (self.facts.get("steps"), self.settings.get("steps"), (self.done or {}).get("steps")):
            if isinstance(steps, int):
                return steps
        return None

    def last(self, name: str) -> float | None:
        """The newest finite value of a figure."""
        finite = self._finite(name)
        return float(finite.values[-1]) if len(finite.values) else None

    def best(self, name: str, *, lower: bool) -> tuple[float, int] | None:
        """The lowest or highest value of a figure, and the step where it was first reached."""
        steps, values = self._finite(name)
        if not len(values):
            return None
        at = int(values.argmin() if lower else values.argmax())
        return float(values[at]), int(steps[at])

    @cached_property
    def hours(self) -> Series:
        """Hours of training at each logged step: the clock of each process goes on where the one before it ended."""
        steps, seconds = self._finite("measured/seconds")
        if not len(steps):
            return Series(steps, seconds)
        resumed = np.array([event.step for event in self.events if event.kind == "resumed"], np.float64)
        # A process that ran shorter than the next one needed for its first line is told by the event alone.
        told = np.searchsorted(np.sort(resumed), steps, "left")
        again = np.r_[False, (np.diff(seconds) < 0) | (np.diff(told) > 0)]
        before = np.cumsum(np.where(again, np.r_[0.0, seconds[:-1]], 0.0))
        return Series(steps, (seconds + before) / 3600)

    def across(self, axis: str, steps: Values) -> Values | None:
        """Where steps (n,) lie on one of `AXES`, (n,); None if this run does not tell."""
        if axis == "steps":
            return steps
        if axis == "samples":
            batch = self.settings.get("batch_size")
            return steps * batch if isinstance(batch, int) else None
        known = self.hours
        # From 0 at the step before the first; lines without a time lie between those that have one.
        return np.interp(steps, np.r_[0.0, known.steps], np.r_[0.0, known.values]) if len(known.steps) else None

    def _finite(self, name: str) -> Series:
        if name not in self.series:
            return Series(np.empty(0), np.empty(0))
        steps, values = self.series[name]
        finite = np.isfinite(values)
        return Series(steps[finite], values[finite])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_object(path: Path) -> Mapping[str, Any] | None:
    """A file with one JSON object, None if it is absent."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(
            f"it is not JSON ({error})", where=str(path), do="Restore it, or start the run in a new folder"
        ) from None
    return _mapping(value)


def _read_series(path: Path, notes: list[str]) -> dict[str, Series]:
    """The figures of a log, read as a stream into columns: as objects a million lines would take gigabytes."""
    parts: dict[str, list[Series]] = defaultdict(list)
    alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)
    for line in _lines(path, notes):
        measured = line.pop("measured", None)
        if isinstance(measured, dict):
            line.update(("measured/" + name, value) for name, value in measured.items())
        rows = alike[tuple(line)]
        rows.append(tuple(line.values()))
        if len(rows) == _ROWS:
            _take(rows, tuple(line), parts)
    for names, rows in alike.items():
        _take(rows, names, parts)
    return {name: _joined(found) for name, found in parts.items()}


def _take(rows: list[tuple[Any, ...]], names: tuple[str, ...], parts: dict[str, list[Series]]) -> None:
    """Turn lines with the same names into columns, and forget them."""
    try:
        values = np.array(rows, np.float64)
    except (ValueError, TypeError, OverflowError):
        values = np.array([[_as_float(value) for value in row] for row in rows])
    columns = dict(zip(names, values.T, strict=True)) if rows else {}
    rows.clear()
    steps = columns.pop("step", np.empty(0))
    for name, column in columns.items():
        parts[name].append(Series(steps, column))


def _as_float(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < math.inf else math.nan


def _joined(parts: list[Series]) -> Series:
    steps = np.concatenate([part.steps for part in parts])
    order = np.argsort(steps, kind="stable")
    return Series(steps[order], np.concatenate([part.values for part in parts])[order])


def _read_events(path: Path, notes: list[str]) -> Iterator[Event]:
    for line in _lines(path, notes):
        yield Event(float(line["step"]), str(line.get("kind", "")), str(line.get("text", "")))


def _lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Objects with a step, up to the first line that is none: a kill cuts the last one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
                whole = type(line["step"]) in (int, float)
            except (ValueError, TypeError, KeyError):
                whole = False
            if not whole:
                rest = "the lines after it are left out" if file.read(1) else "it was cut off and is left out"
                notes.append(f"Line {number:,} of {path.name} cannot be read: {rest}.")
                return
            yield line
