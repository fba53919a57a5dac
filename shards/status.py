"""How far a stage has come, from its records alone: told on any machine that can list the folder."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shards.dataset import DatasetPlan
from shards.errors import one_line
from shards.failures import FAILURES
from shards.record import RECORDS, RecordName, is_made, published_records, read_records
from shards.storage import Folder

_RECENT = 50
"""The newest records, whose times tell the rate."""
_OPENED_HERE, _OPENED_THERE = 4000, 48
"""Records that are opened where no manifest has them, on a disk and on a store: of more, a sample stands for all."""
_SHOWN = 5


@dataclass(frozen=True)
class Failure:
    """The newest of `_failures`."""

    shard: int
    cause: str
    attempts: int


@dataclass(frozen=True)
class StageStatus:
    """Shards of one folder.

    Attributes:
        wanted: how many there are to be, as far as is known; None where the folder does not say.
        made: those with the wanted record.
        missing: the first few that are not.
        counted: of how many records `samples` and `stats` are the sum.
        rate: shards a second over the newest records, by the storage's clock; None for fewer than two.
        newest: seconds since the newest record; below 0 where the storage's clock is ahead of this machine's.
        failed: how many have failed for good, and `failure` the newest of these.
    """

    wanted: int | None
    made: int
    missing: tuple[int, ...]
    counted: int
    samples: int
    stats: Mapping[str, float]
    rate: float | None
    newest: float | None
    failed: int
    failure: Failure | None

    @property
    def left(self) -> float | None:
        """Seconds that what is missing takes at this rate."""
        return (self.wanted - self.made) / self.rate if self.rate and self.wanted is not None else None


@dataclass(frozen=True)
class DatasetStatus:
    """A dataset, or what is to become one. `command`: the words that go on, or make it again."""

    name: str
    stage: StageStatus
    rows: int
    planned: bool
    command: tuple[str, ...] = field(default=())

    @property
    def whole(self) -> bool:
        return self.planned and self.stage.made == self.stage.wanted


def dataset_status(folder: Folder) -> DatasetStatus:
    """Of the dataset at `folder`, finished or not. Raises `UserError` if there is none."""
    plan = DatasetPlan.read(folder, unfinished=True)
    names = published_records(folder)
    missing = plan.missing(names)
    # The stage whose command goes on: that of the first shard that is missing, or else the newest.
    stage = plan.stage_of(missing[0]) if missing else plan.stages[-1]
    command = list(stage.command)
    if command:
        command += [folder.url] if stage.is_retry else ["--out", folder.url]
    found = stage_status(folder, plan.wanted, names)
    return DatasetStatus(plan.name, found, plan.rows, all(stage.whole for stage in plan.stages), tuple(command))


def stage_status(
    folder: Folder, wanted: Mapping[int, str] | None = None, names: Mapping[int, RecordName] | None = None
) -> StageStatus:
    """Of the shards in `folder`: `wanted` are their numbers → the fingerprints that their records must have."""
    names = published_records(folder) if names is None else names
    made = {
        shard: name for shard, name in names.items() if wanted is None or is_made(names, shard, wanted.get(shard, "-"))
    }
    records = read_records(folder, made.values(), most=_OPENED_HERE if folder.is_local else _OPENED_THERE)
    stats: Counter[str] = Counter()
    for record in records.values():
        stats.update(record.stats)
    times = folder.child(RECORDS).times()
    recent = sorted(times[str(name)] for name in made.values() if str(name) in times)[-_RECENT:]
    span = recent[-1] - recent[0] if len(recent) > 1 else 0
    failed, failure = _failure(folder)
    return StageStatus(
        wanted=None if wanted is None else len(wanted),
        made=len(made),
        missing=tuple(shard for shard in wanted or () if shard not in made)[:_SHOWN],
        counted=len(records),
        samples=sum(record.count for record in records.values()),
        stats=dict(stats),
        rate=(len(recent) - 1) / span if span > 0 else None,
        newest=time.time() - recent[-1] if recent else None,
        failed=failed,
        failure=failure,
    )


def _failure(folder: Folder) -> tuple[int, Failure | None]:
    below = folder.child(FAILURES)
    times = {name: at for name, at in below.times().items() if name.endswith(".json") and not name.startswith(".")}
    for name in sorted(times, key=lambda name: times[name], reverse=True):
        try:
            told: Any = json.loads(below.read(name))
            return len(times), Failure(int(told["shard"]), one_line(str(told["cause"])), int(told["attempts"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue  # its shard has succeeded meanwhile
    return len(times), None


def dataset_lines(url: str, found: DatasetStatus) -> list[str]:
    """As a person reads it."""
    stage = found.stage
    state = "whole" if found.whole else "not whole" if found.planned else "its list is still being read"
    lines = [f"{url}: the dataset {found.name}, {state}", *stage_lines(stage)]
    rows = int(stage.stats.get("rows", stage.samples))
    if stage.counted:
        causes = Counter({name[7:]: count for name, count in stage.stats.items() if name.startswith("failed.")})
        most = ", ".join(f"{name} {int(count):,}" for name, count in causes.most_common(3))
        part = "" if stage.counted == stage.made else f", in {stage.counted:,} of the {stage.made:,} shards"
        yields = f" ({stage.samples / rows:.1%})" if rows else ""
        lines.append(
            f"  rows      {rows:,} of {found.rows:,} ended as {stage.samples:,} samples{yields}{part}"
            + (f"; others {most}" if most else "")
        )
    if found.command:
        lines.append(f"  {'made by ' if found.whole else 'goes on '}  {shlex.join(found.command)}")
    elif not found.whole:
        lines.append("  goes on   the command or script that began it, run again")
    return lines


def stage_lines(stage: StageStatus) -> list[str]:
    """Shards, rate and failures, a line each."""
    of = "" if stage.wanted is None else f" of {stage.wanted:,}"
    missing = (stage.wanted or stage.made) - stage.made
    shown = ", ".join(f"{shard:05d}" for shard in stage.missing) + (", ..." if missing > len(stage.missing) else "")
    lines = [f"  shards    {stage.made:,}{of} made" + (f", {missing:,} missing ({shown})" if missing else "")]
    if stage.rate is not None and stage.newest is not None:
        left = f"; {spoken(stage.left)} left at this rate" if stage.left else ""
        ahead = stage.newest < -1
        when = f"{spoken(abs(stage.newest))} {'ahead of this clock' if ahead else 'ago'}"
        each = stage.rate * 60
        lines.append(f"  rate      {each:,.1f} shards a minute over the newest {_RECENT}, the last {when}{left}")
    if stage.failure is not None:
        told = stage.failure
        lines.append(
            f"  failed    {stage.failed:,}; the last, {told.shard:05d}, in {told.attempts} tries: {told.cause}"
        )
    return lines


def spoken(seconds: float) -> str:
    """A span of time, roughly."""
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:.0f} s"
