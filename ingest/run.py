"""The ingest stage: plan, download, account."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ingest import plan
from ingest.advice import advice_on
from ingest.faces import COLUMN
from ingest.fetch import Fetcher, make_room
from ingest.folders import LIST
from ingest.preflight import resolver_warning
from ingest.settings import IngestSettings, NetworkSettings
from ingest.task import IngestTask
from shards import Folder, IncompleteError, Summary, UserError, published_records, read_records, run_shards
from shards.choice import ENDLESS, Work
from shards.dataset import DATASET, PLANNING
from shards.executor import Executor
from shards.places import refuse_other_things
from shards.quantities import said_size

log = logging.getLogger(__name__)

_ROW_BYTES = 100
"""Of a list; few have shorter rows."""
ROWS_A_SECOND = 350.0
"""That one core fetches and stores (two: 700, benchmarks/results/ingest.json). Hosts that answer slowly, or not at all,
are waited for here as on Ray, by connections enough for so few rows."""


@dataclass(frozen=True)
class IngestReport:
    """Rows in, samples out, and the other rows by cause; `rows == samples + sum(failed.values())` always holds."""

    rows: int
    samples: int
    failed: dict[str, int]
    summary: Summary


def refuse_nothing(out: str, reports: Sequence[IngestReport]) -> None:
    """Raise `IncompleteError`, with the cause of most rows, if no row of the dataset at `out` became a sample in these
    runs or in those before: however short the list is, that is no success.
    """
    if any(report.samples for report in reports):
        return
    records = list(read_records(Folder(out)).values())
    if any(record.count for record in records):
        return
    counts = Counter[str]()
    for record in records:
        counts.update({name: int(count) for name, count in record.stats.items()})
    failed = {name.removeprefix("failed."): count for name, count in counts.items() if name.startswith("failed.")}
    # What it is a duplicate of came to nothing for a cause of its own.
    failed.pop("duplicate", None)
    cause, count = max(failed.items(), key=lambda item: item[1])
    shard = next(record.shard for record in records if record.stats.get(f"failed.{cause}"))
    do = advice_on(Folder(out), cause, shard)
    rows = "its one row became no sample" if counts["rows"] == 1 else f"none of {counts['rows']} rows became a sample"
    raise IncompleteError(f"{out}: {rows}: {count} {'is' if count == 1 else 'are'} {cause}. {do}")


def work_of_list(settings: IngestSettings) -> Work:
    """What an ingest is, by the sizes of local files; of anything else that is not known at once, so it is endless."""
    paths = [Path(path) for path in settings.source.paths]
    try:
        plain = all(path.is_file() and path.suffix not in {".gz", ".bz2", ".zst"} for path in paths)
        size = sum(path.stat().st_size for path in paths) if plain else 0
    except (OSError, ValueError):
        plain = False
    if not plain or settings.source.subset is not None:
        return ENDLESS
    return Work(f"a list of {said_size(size)}", size / _ROW_BYTES / ROWS_A_SECOND)


def ingest(settings: IngestSettings, executor: Executor) -> IngestReport:
    """Bring every row of the input to a sample or to a cause in the ledger; goes on where an earlier run stopped.

    Rows are fetched while those after them are planned. Of a list that has grown since, the new rows are added.

    Raises:
        UserError: unusable input or settings, a folder that holds another dataset, or nothing that comes through.
        IncompleteError: shards are missing at the end.
    """
    if settings.engine != "files":
        refuse_early(settings.network, executor.workers)
    if settings.engine == "img2dataset":
        log.warning("ingest: img2dataset's engine refuses no address and has no deadline: only for lists you trust")
    out = Folder(settings.out)
    refuse_other_things(out, "a dataset", {DATASET, PLANNING, plan.PLAN, plan.SEEN, LIST})
    with out.alone(), plan.Planning(settings) as planning:
        if not published_records(out):
            first = planning.first_rows()
            if settings.image.blur_faces is None and COLUMN in first.column_names:
                log.warning(
                    "ingest: the list has boxes of faces (%s), which are not blurred without --blur-faces", COLUMN
                )
            asks_names = settings.network.proxy is None and settings.engine != "files"
            warning = resolver_warning(first) if asks_names else None
            if warning is not None:
                log.warning("ingest: %s", warning)
        name = "pack" if settings.engine == "files" else "ingest"
        report = run_planned(IngestTask(settings, planning.stage, name=name, planning=planning), executor)
        planning.tidy()
        return report


def refuse_early(network: NetworkSettings, workers: int) -> None:
    """Raise `UserError` for what every worker would refuse, before any is started; warn of what is not as asked for."""
    network = network.shared_by(workers)
    room = make_room(network)
    Fetcher[None](network, max_bytes=1).close()
    if room.connections < network.connections:
        log.warning(
            "ingest: %d connections do not fit into this machine's limit of open files (ulimit -Hn); a worker here "
            "makes do with %d",
            network.connections,
            room.connections,
        )
    if network.proxy is not None:
        log.warning(
            "ingest: the proxy may fetch from any address, private ones too: nobody here sees which it connects to"
        )


def run_planned(task: IngestTask, executor: Executor) -> IngestReport:
    """As `ingest`, for shards that are planned already."""
    if task.settings.engine != "files":
        # Nobody counts what others ask: with its part of a host's limits no worker has to.
        network = task.settings.network.shared_by(executor.workers)
        task.settings = replace(task.settings, network=network)
    summary = run_shards(task, executor, attempts=task.settings.attempts)
    failed = {
        name.removeprefix("failed."): int(count)
        for name, count in sorted(summary.stats.items())
        if name.startswith("failed.")
    }
    rows, planned = int(summary.stats["rows"]), task.rows
    if rows != planned or rows != summary.samples + sum(failed.values()):
        raise UserError(
            f"the records account for {summary.samples} samples and {sum(failed.values())} failures of {planned} rows",
            where=task.settings.out,
            do="Run `clipstill shards verify` on it",
        )
    return IngestReport(rows, summary.samples, failed, summary)
