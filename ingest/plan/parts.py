"""The parts of a plan: the rows of many shards in one Arrow file of `_plan/`, of which a worker maps its shard's batch.

One file a shard would be millions of small objects on a store; one file for all shards could be neither cached nor read
while it is written. A part is removed once its shards are made and newer parts have followed: the ledgers have its
rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ingest.ledger import PLAN_COLUMNS, RESERVED, read_ledger
from shards import Folder, UserError
from shards.dataset import PlanPart, Stage, read_lists
from shards.fingerprint import sha256_file

PLAN = "_plan"
PART_ROWS = 1 << 18
"""The most rows of a part, unless one shard has more."""
PART_BYTES = 1 << 26
"""The most bytes of rows of a part, unless one shard has more: planning holds some of each at a time."""
_REMAKE = "Run the same `clipstill ingest` command again, or restore it"


def write_part(folder: Folder, name: str, tables: Sequence[pa.Table]) -> PlanPart:
    """Publish the tables of some shards, all of one schema, as one part; returns what stands for it in a stage."""
    with folder.child(PLAN).staged(name) as path:
        # A shard's buffers are so small that handing them to threads takes longer than to work on them, as in reading.
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, tables[0].schema, options=options) as writer:
            for table in tables:
                writer.write_table(table.combine_chunks())
        size, digest = path.stat().st_size, sha256_file(path)
    return PlanPart(name, size, digest, len(tables), sum(table.num_rows for table in tables))


def write_parts(folder: Folder, prefix: str, tables: Iterable[pa.Table]) -> tuple[PlanPart, ...]:
    """Publish tables, one for each shard and all with one schema, in parts of at most `PART_ROWS` and `PART_BYTES`.

    The parts' names begin with `prefix`. Returns what `read_rows` needs as `parts`; empty if there is no table.
    """
    parts: list[PlanPart] = []
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        rows, size = rows + table.num_rows, size + table.nbytes
        if held and (rows > PART_ROWS or size > PART_BYTES):
            parts.append(write_part(folder, part_name(prefix, len(parts)), held))
            held, rows, size = [], table.num_rows, table.nbytes
        held.append(table)
    if held:
        parts.append(write_part(folder, part_name(prefix, len(parts)), held))
    return tuple(parts)


def part_name(prefix: str, number: int) -> str:
    """The file of a stage's part: `00000.arrow`, with a prefix `round-001-00000.arrow`."""
    return f"{prefix}-{number:05d}.arrow".removeprefix("-")


def read_part(folder: Folder, part: PlanPart, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The shards of a part, in order. On an object store this is a download that nothing caches."""
    place = folder.child(PLAN)
    source = pa.memory_map(str(place.path / part.name)) if place.is_local else pa.BufferReader(place.read(part.name))
    with source:
        schema = pa.ipc.open_file(source).schema
        fields = None if columns is None else [schema.get_field_index(name) for name in columns]
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False))
        for number in range(part.shards):
            yield reader.get_batch(number)


def read_rows(folder: Folder, stage: Stage, shard: int) -> pa.Table:
    """The planned rows of one shard: `ledger.PLAN_COLUMNS`, then the kept columns.

    The shard is in `stage`, or in what has been planned since that was read, which is found in the folder. On an object
    store a part is copied once to the local cache. Where a part has been removed the shard's own ledger has the rows.
    Raises `UserError` if neither is there, or the part is damaged.
    """
    part, number = _find_part(folder, stage, shard)
    path = _local_path(folder, part)
    if path is None and folder.exists(f"{shard:05d}.parquet"):
        return planned_columns(read_ledger(folder, shard))
    where = f"{folder}/{PLAN}/{part.name}"
    size = None if path is None else path.stat().st_size
    if path is None or size != part.bytes:
        state = "is missing" if size is None else f"has {size} bytes"
        raise UserError(f"this part of the plan {state}, it was written with {part.bytes}", where=where, do=_REMAKE)
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
            rows = pa.Table.from_batches([reader.get_batch(number)])
            rows.validate(full=True)
            return rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"this part of the plan is damaged ({error})", where=where, do=_REMAKE) from None


_KNOWN: dict[tuple[Folder, str], list[Stage]] = {}
"""The stages as they were last read here: a worker asks for a part of each shard."""


def _find_part(folder: Folder, stage: Stage, shard: int) -> tuple[PlanPart, int]:
    """The part that a shard is in, and its place there. Raises `ValueError` if it is not planned."""
    place = (folder, stage.fingerprint)
    found = _look_up([stage], shard) or _look_up(_KNOWN.get(place, []), shard)
    if found is None:
        _KNOWN[place] = read_lists(folder)
        found = _look_up(_KNOWN[place], shard)
    if found is None:
        raise ValueError(f"shard {shard} is not in this plan")
    return found


def _look_up(stages: list[Stage], shard: int) -> tuple[PlanPart, int] | None:
    for stage in stages:
        number = shard - stage.first
        for part in stage.parts if number >= 0 else ():
            if number < part.shards:
                return part, number
            number -= part.shards
    return None


def _local_path(folder: Folder, part: PlanPart) -> Path | None:
    """The part's file, or a copy of it; None if it is not there any more."""
    place = folder.child(PLAN)
    try:
        path = place.fetch(part.name, part.sha256)
    except UserError:
        if place.exists(part.name):
            raise
        return None
    return path if path.exists() else None


def planned_columns(ledger: pa.Table) -> pa.Table:
    """A ledger's rows as they were planned."""
    return ledger.drop_columns([name for name in ledger.column_names if name in RESERVED.difference(PLAN_COLUMNS)])
