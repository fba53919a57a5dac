"""Make a whole plan at once, for lists that are short or fetched later; cut a table of rows into shards of a size."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ingest.plan.planner import Planner
from ingest.settings import IngestSettings
from shards import Folder
from shards.dataset import DatasetPlan, Stage


def make_plan(settings: IngestSettings) -> Stage:
    """Publish the plan in `settings.out` whole, or find it already there; returns its first stage.

    Rows that a list has grown by are planned too, as a round.
    Raises `UserError` for unusable input, an empty one, a full disk, or a folder that holds another dataset.
    """
    for _ in Planner(settings).pieces():
        pass
    return DatasetPlan.read(Folder(settings.out)).stages[0]


def cut(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """Tables of exactly `size` rows, the last one shorter."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= size:
            whole = pa.concat_tables(held).combine_chunks()
            ready = rows - rows % size
            yield from (whole.slice(start, size) for start in range(0, ready, size))
            held, rows = [whole.slice(ready)], rows - ready
    if rows:
        yield pa.concat_tables(held)
