"""Fetch again what failed but may pass, into new shards: rounds, each planned before it is fetched.

    ledgers since the last retry → rows that may pass → _rounds/NNN.json and its plan → shards after the last ones

A round's plan is published as the dataset's is, so a killed retry goes on where it was. Existing shards and ledgers are
never touched: a row's state is what its key's last ledger row says. A round records which addresses were allowed when
it was planned. Once more are allowed, the rows that were blocked in any earlier round may pass too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ingest import plan
from ingest.command import retry_command_of
from ingest.fetched import may_pass
from ingest.ledger import read_ledger
from ingest.run import ROWS_A_SECOND, IngestReport, refuse_early, run_planned
from ingest.settings import ImageSettings, IngestSettings, NetworkSettings, SourceSettings
from ingest.task import IngestTask
from shards import Folder, UserError, fingerprint, read_records, sound_records
from shards.choice import Work
from shards.dataset import DatasetPlan, Stage, publish_whole
from shards.executor import Executor

_WORTH = 0.01
"""A round that brings a smaller share of its rows is the last one."""
_WITNESSES = 20
_BLOCKED = "blocked_address"


def retry(
    out: str, network: NetworkSettings, executor: Executor, *, stop_on_collapse: bool = True, attempts: int = 3
) -> list[IngestReport]:
    """Fetch the retryable rows of the dataset at `out` again, round after round, until none is left or none comes.

    Rows that were blocked for their address come along, once, if `network` allows an address that no retry has allowed
    since they were blocked. Images are made as the dataset's settings say. Returns a report of every round that ran.

    Raises:
        UserError: no dataset there, one whose ingest is not complete, or nothing that comes through.
        IncompleteError: shards of a round are missing at the end.
    """
    refuse_early(network, executor.workers)
    folder = Folder(out)
    settings = _settings_of(out, DatasetPlan.read(folder).settings, network)
    settings = replace(settings, stop_on_collapse=stop_on_collapse, attempts=attempts)
    reports: list[IngestReport] = []
    with folder.alone():
        while (added := _next_round(folder, settings)) is not None:
            reports.append(run_planned(IngestTask(settings, added, name="retry"), executor))
            if reports[-1].samples < _WORTH * reports[-1].rows:
                break
    return reports


def work_of_retry(out: str) -> Work:
    """What a retry is: of the rows that may pass, those that passed since are counted too."""
    folder = Folder(out)
    DatasetPlan.read(folder)
    counts = Counter[str]()
    for record in read_records(folder).values():
        counts.update({name.removeprefix("failed."): int(count) for name, count in record.stats.items()})
    rows = sum(count for cause, count in counts.items() if cause == _BLOCKED or may_pass(cause))
    return Work(f"up to {rows:,} rows", rows / ROWS_A_SECOND)


def _settings_of(out: str, chosen: Mapping[str, Any], network: NetworkSettings) -> IngestSettings:
    source: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in chosen["source"].items()
    }
    return IngestSettings(
        source=SourceSettings(paths=(), **source),
        out=out,
        name=chosen["name"],
        shard_size=chosen["shard_size"],
        image=ImageSettings(**chosen["image"]),
        network=network,
        engine=chosen["engine"],
    )


def _next_round(folder: Folder, settings: IngestSettings) -> Stage | None:
    """The round that an earlier run left unfinished, or a new one, published; None if there is nothing to retry."""
    known = DatasetPlan.read(folder)
    missing = known.missing(sound_records(folder))
    known.refuse_unfinished()
    if missing:
        stage = known.stage_of(missing[0])
        if stage.is_retry:
            return stage
        raise UserError(
            f"{len(missing)} of {len(known.wanted)} shards are missing",
            where=str(folder),
            do="Run the same `clipstill ingest` command again to finish it, then retry",
        )
    number = f"{len(known.stages):03d}"
    witnesses: dict[str, str] = {}
    tables = plan.cut(_retryable(folder, known.stages, settings, witnesses), settings.shard_size)
    parts = plan.write_parts(folder, f"round-{number}", tables)
    if not parts:
        return None
    return publish_whole(
        folder,
        Stage(
            name=known.name,
            captioned=known.captioned,
            fingerprint=fingerprint([known.stages[0].fingerprint, [vars(part) for part in parts]]),
            round=number,
            first=known.stages[-1].numbers.stop,
            row=None,
            shards=sum(part.shards for part in parts),
            rows=sum(part.rows for part in parts),
            parts=parts,
            witnesses=tuple(sorted(witnesses.values())),
            command=retry_command_of(settings),
            allowed=tuple(sorted(settings.network.allow_addresses)),
        ),
    )


def _retryable(
    folder: Folder, stages: Sequence[Stage], settings: IngestSettings, witnesses: dict[str, str]
) -> Iterator[pa.Table]:
    """The plan rows of what failed but may pass, from the `stages` so far: the dataset's plan and its rounds.

    Every retry has taken along what might pass of all before it, so what is left stands in the last one or in rows that
    were added since; blocked rows stay where they were blocked. `witnesses` fills with URLs that did answer, one a
    host: should all of a round fail, they tell whether it is the network's fault.
    """
    allowed = set(settings.network.allow_addresses)
    left, blocked, later = True, bool(allowed), set[str]()
    for stage in reversed(stages):
        # A retry that was allowed as much has taken along whatever had been blocked before it.
        blocked = blocked and not (stage.is_retry and allowed <= set(stage.allowed))
        if not (left or blocked):
            return
        for shard in stage.numbers:
            ledger = read_ledger(folder, shard)
            found = filter(None, pc.unique(ledger["error_class"]).to_pylist())
            causes = [cause for cause in found if (left and may_pass(cause)) or (blocked and cause == _BLOCKED)]
            if causes:
                failed = ledger.filter(pc.is_in(ledger["error_class"], pa.array(causes)))
                standing = pa.array([key not in later for key in failed["key"].to_pylist()], pa.bool_())
                yield plan.planned_columns(failed.filter(standing))
            if blocked and stage.is_retry:
                later.update(ledger["key"].to_pylist())
            if len(witnesses) < _WITNESSES:
                good = ledger.filter(pc.equal(ledger["status"], "success")).slice(0, _WITNESSES)
                witnesses.update(zip(good["host"].to_pylist(), good["url"].to_pylist(), strict=True))
        left = left and not stage.is_retry
