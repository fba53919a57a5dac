"""The ingest stage: plan, download, account."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.plan import make_plan
from ingest.settings import IngestSettings
from ingest.task import IngestTask
from shards import Summary, UserError, run_shards
from shards.runner import Executor


@dataclass(frozen=True)
class IngestReport:
    """Rows in, samples out, and the failed rows by cause; `rows == samples + sum(failed.values())` always holds."""

    rows: int
    samples: int
    failed: dict[str, int]
    summary: Summary


def ingest(settings: IngestSettings, executor: Executor) -> IngestReport:
    """Bring every row of the input to a sample or to a cause in the ledger; goes on where an earlier run stopped.

    Raises:
        UserError: unusable input or settings, or a folder that holds another dataset.
        IncompleteError: shards are missing at the end.
    """
    facts = make_plan(settings)
    summary = run_shards(IngestTask(settings, facts), executor)
    failed = {
        name.removeprefix("failed."): int(count)
        for name, count in sorted(summary.stats.items())
        if name.startswith("failed.")
    }
    rows = int(summary.stats["rows"])
    if rows != facts["rows"] or rows != summary.samples + sum(failed.values()):
        raise UserError(
            f"the records account for {summary.samples} samples and {sum(failed.values())} failures of "
            f"{facts['rows']} rows",
            where=settings.out,
            do="Run `clipstill shards verify` on it",
        )
    return IngestReport(rows, summary.samples, failed, summary)
