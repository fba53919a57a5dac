"""The ingest stage: plan, download, account."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ingest import plan
from ingest.faces import COLUMN
from ingest.fetch import Fetcher
from ingest.preflight import resolver_warning
from ingest.settings import IngestSettings, NetworkSettings
from ingest.task import IngestTask
from shards import Folder, Summary, UserError, published_records, run_shards
from shards.runner import Executor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestReport:
    """Rows in, samples out, and the other rows by cause; `rows == samples + sum(failed.values())` always holds."""

    rows: int
    samples: int
    failed: dict[str, int]
    summary: Summary


def ingest(settings: IngestSettings, executor: Executor) -> IngestReport:
    """Bring every row of the input to a sample or to a cause in the ledger; goes on where an earlier run stopped.

    Raises:
        UserError: unusable input or settings, a folder that holds another dataset, or nothing that comes through.
        IncompleteError: shards are missing at the end.
    """
    refuse_early(settings.network)
    if settings.engine == "img2dataset":
        log.warning("ingest: img2dataset's engine refuses no address and has no deadline: only for lists you trust")
    out = Folder(settings.out)
    with out.alone():
        facts = plan.make_plan(settings)
        if not published_records(out):
            first = plan.read_rows(out, facts, 0)
            if settings.image.blur_faces is None and COLUMN in first.column_names:
                log.warning(
                    "ingest: the list has boxes of faces (%s), which are not blurred without --blur-faces", COLUMN
                )
            warning = resolver_warning(first)
            if warning is not None:
                log.warning("ingest: %s", warning)
        return run_planned(IngestTask(settings, facts), executor)


def refuse_early(network: NetworkSettings) -> None:
    """Raise `UserError` for what every worker would refuse, before any is started."""
    Fetcher(network, max_bytes=1).close()


def run_planned(task: IngestTask, executor: Executor) -> IngestReport:
    """As `ingest`, for shards that are planned already."""
    summary = run_shards(task, executor)
    failed = {
        name.removeprefix("failed."): int(count)
        for name, count in sorted(summary.stats.items())
        if name.startswith("failed.")
    }
    rows, planned = int(summary.stats["rows"]), task.facts["rows"]
    if rows != planned or rows != summary.samples + sum(failed.values()):
        raise UserError(
            f"the records account for {summary.samples} samples and {sum(failed.values())} failures of {planned} rows",
            where=task.settings.out,
            do="Run `clipstill shards verify` on it",
        )
    return IngestReport(rows, summary.samples, failed, summary)
