"""What became of the rows of a dataset, by its ledgers: how many are no samples, and why."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import ShardRecord, UserError
from shards.arrow_files import refuse_other_columns
from shards.dataset import DatasetPlan
from shards.keys import sample_row
from stats.measures import KEYS, Words

_LEDGER = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("key", "status")])
SAMPLE = "success"
_CAUSES = ("error_class", "reason")
"""The second one of selections."""


def count_rows(plan: DatasetPlan, records: Mapping[int, ShardRecord]) -> tuple[int, Words]:
    """How many rows there are, and those that are no samples by status and cause, as `failed_to_download: dns`.

    A row that was fetched again counts once, as it then ended. Raises `UserError` if a ledger is missing or damaged.
    """
    causes = Words()
    rows = 0
    retried = {shard for stage in plan.retries for shard in stage.numbers}
    seen = np.zeros(plan.rows if retried else 0, bool)
    for shard in sorted(records, reverse=bool(retried)):
        ledger = _read(plan, f"{shard:05d}.parquet")
        if retried:
            # A key is the dataset's name, "-" and the row's number.
            told = [sample_row(plan.name, key) for key in ledger["key"].to_pylist()]
            if any(row is None or row >= len(seen) for row in told):
                where = str(plan.folder)
                raise UserError(f"{shard:05d}.parquet has keys of no row of the input", where=where, do="Run `verify`")
            numbers = np.array(told, np.int64)
            ledger = ledger.filter(pa.array(~seen[numbers]))
            seen[numbers] = True
        rows += len(ledger)
        others = ledger.filter(pc.not_equal(ledger["status"], SAMPLE))
        groups = others.group_by(["status", "cause"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            cause = group["cause"]
            same = pc.equal(others["status"], group["status"])
            same = pc.and_(same, pc.is_null(others["cause"]) if cause is None else _is(others, cause))
            keys = others.filter(same)["key"].slice(0, KEYS).to_pylist()
            causes.add(f"{group['status']}{f': {cause}' if cause else ''}", group["count_all"], keys)
    return rows, causes


def _is(rows: pa.Table, cause: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(rows["cause"], cause), False)


def _read(plan: DatasetPlan, name: str) -> pa.Table:
    """Key, status, and the cause, null where there is none."""
    try:
        folder = plan.folder
        file = pq.ParquetFile(folder.path / name if folder.is_local else io.BytesIO(folder.read(name)))
        table = file.read([name for name in ("key", "status", *_CAUSES) if name in file.schema_arrow.names])
        table.validate(full=True)
        refuse_other_columns(table, _LEDGER)
        if len(table) != file.metadata.num_rows:
            # Columns of different lengths are read as far as the shortest.
            raise ValueError(f"it has {len(table)} rows instead of {file.metadata.num_rows}")
        cause = next((table[name] for name in _CAUSES if name in table.column_names), pa.nulls(len(table)))
        return table.select(["key", "status"]).append_column("cause", cause.cast(pa.string()))
    except FileNotFoundError:
        raise UserError(f"{name} is missing", where=str(plan.folder), do="Restore it: `verify` names all") from None
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{name} cannot be read ({told})", where=str(plan.folder), do="Run `verify`") from None
