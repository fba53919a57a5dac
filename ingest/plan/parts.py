"""Tables of rows, one a shard, kept in `_plan/` as Arrow files of many shards: a worker maps one and takes a batch.

One file a shard would be millions of small objects on a store; one file for all could be neither cached nor replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from shards import Folder, UserError
from shards.fingerprint import sha256_file

PLAN = "_plan"
_PART_ROWS = 1_000_000
_REMAKE = "Restore it, or ingest into another folder"

Part = dict[str, Any]
"""Of one file: `name`, `bytes`, `sha256`, and how many `shards` and `rows` it holds."""


def write_parts(folder: Folder, prefix: str, tables: Iterable[pa.Table]) -> list[Part]:
    """Publish tables, one for each shard and all with one schema, in parts of at most a million rows or one shard.

    The parts' names begin with `prefix`. Returns what `read_rows` needs as `parts`; empty if there is no table.
    """
    source = iter(tables)
    table = next(source, None)
    parts: list[Part] = []
    while table is not None:
        name = f"{prefix}-{len(parts):05d}.arrow".removeprefix("-")
        rows = shards = 0
        with folder.child(PLAN).staged(name) as path:
            with pa.OSFile(str(path), "wb") as file, _new_file(file, table.schema) as writer:
                while table is not None and (not shards or rows + table.num_rows <= _PART_ROWS):
                    writer.write_table(table.combine_chunks())
                    rows, shards = rows + table.num_rows, shards + 1
                    table = next(source, None)
            part = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        parts.append({"name": name, **part, "shards": shards, "rows": rows})
    return parts


def rewrite_part(folder: Folder, part: Part, batches: Iterator[pa.RecordBatch]) -> Part:
    """Publish a part again with the same shards and other values; returns what is to stand in its place."""
    first = next(batches)
    with folder.child(PLAN).staged(part["name"]) as path:
        with pa.OSFile(str(path), "wb") as file, _new_file(file, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        return {**part, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _new_file(file: pa.NativeFile, schema: pa.Schema) -> pa.RecordBatchFileWriter:
    # A shard's buffers are so small that handing them to threads takes longer than to work on them, as in reading.
    return pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False))


def read_part(folder: Folder, part: Part, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The shards of a part just written, in order. On an object store this is a download that nothing caches."""
    place = folder.child(PLAN)
    source = (
        pa.memory_map(str(place.path / part["name"])) if place.is_local else pa.BufferReader(place.read(part["name"]))
    )
    with source:
        schema = pa.ipc.open_file(source).schema
        fields = None if columns is None else [schema.get_field_index(name) for name in columns]
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False))
        for number in range(part["shards"]):
            yield reader.get_batch(number)


def read_rows(folder: Folder, facts: dict[str, Any], shard: int) -> pa.Table:
    """The planned rows of one shard: `ledger.PLAN_COLUMNS`, then the kept columns.

    `facts` are those of `dataset.json`, or of a later round whose shards begin at its `first`. On an object store a
    part is copied once to the local cache. Raises `UserError` if the part is absent or damaged.
    """
    number = shard - facts.get("first", 0)
    for part in facts["parts"]:
        if number < part["shards"]:
            return _read_shard(folder, part, number)
        number -= part["shards"]
    raise ValueError(f"shard {shard} is not in this plan")


def _read_shard(folder: Folder, part: Part, number: int) -> pa.Table:
    path = folder.child(PLAN).fetch(part["name"], part["sha256"])
    where = f"{folder}/{PLAN}/{part['name']}"
    size = path.stat().st_size if path.exists() else None
    if size != part["bytes"]:
        state = "is missing" if size is None else f"has {size} bytes"
        raise UserError(f"this part of the plan {state}, it was written with {part['bytes']}", where=where, do=_REMAKE)
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(use_threads=False))
            return pa.Table.from_batches([reader.get_batch(number)])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"this part of the plan is damaged ({error})", where=where, do=_REMAKE) from None
