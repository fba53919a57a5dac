"""Cut the input into shards before any download, so that workers, retries and order never change the output.

`_plan/NNNNN.parquet` holds the rows of one shard with their keys. `dataset.json` is published last: once it is there
the plan stands, and an input or setting that differs from it is refused by name.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.ledger import RESERVED
from ingest.settings import IngestSettings
from ingest.sources import describe_input, find_inputs, read_input
from shards import Folder, UserError, fingerprint
from shards.fingerprint import first_difference
from shards.keys import check_dataset_name, sample_key
from shards.reader import DATASET, SCHEMA_VERSION, read_dataset_facts

PLAN = "_plan"


def make_plan(settings: IngestSettings) -> dict[str, Any]:
    """Publish the plan in `settings.out`, or find it already there; returns the facts of `dataset.json`.

    Raises `UserError` for unusable input, an empty one, or a folder that holds another dataset.
    """
    check_dataset_name(settings.name)
    if len(set(settings.source.keep)) != len(settings.source.keep):
        raise UserError(f"a column is kept twice: {', '.join(settings.source.keep)}", do="Name each column once")
    for name in settings.source.keep:
        if name in RESERVED:
            raise UserError(f"cannot keep a column named {name!r}: the ledger has its own", do="Rename it in the input")
    out = Folder(settings.out)
    paths = find_inputs(settings.source.paths)
    inputs = [describe_input(path) for path in paths]
    identity = {"schema": SCHEMA_VERSION, "settings": settings.identity(), "inputs": inputs}
    standing = _standing(out)
    if standing is not None:
        _refuse_another(out, standing, identity)
        return standing
    rows = shards = 0
    for table in _cut(paths, settings):
        keys = [sample_key(settings.name, rows + row) for row in range(table.num_rows)]
        sink = io.BytesIO()
        pq.write_table(table.add_column(0, "key", pa.array(keys)), sink, compression="zstd")
        out.child(PLAN).publish(f"{shards:05d}.parquet", sink.getvalue())
        rows += table.num_rows
        shards += 1
    if not rows:
        raise UserError("the input has no rows", where=", ".join(paths))
    facts = {**identity, "name": settings.name, "rows": rows, "shards": shards, "fingerprint": fingerprint(identity)}
    out.publish(DATASET, json.dumps(facts, indent=1).encode())
    return facts


def _standing(out: Folder) -> dict[str, Any] | None:
    return read_dataset_facts(out) if out.exists(DATASET) else None


def _refuse_another(out: Folder, standing: dict[str, Any], identity: dict[str, Any]) -> None:
    if standing["fingerprint"] == fingerprint(identity):
        return
    before = {entry["name"]: entry for entry in standing["inputs"]}
    after = {entry["name"]: entry for entry in identity["inputs"]}
    difference = (
        first_difference(standing["settings"], identity["settings"])
        or first_difference(before, after, "input ")
        or "the inputs come in another order"
    )
    raise UserError(
        f"this folder holds another dataset: {difference}",
        where=str(out),
        do="Write to another folder, or restore what was changed",
    )


def _cut(paths: list[str], settings: IngestSettings) -> Iterator[pa.Table]:
    """Tables of exactly `shard_size` rows, the last one shorter; shards run on across files."""
    held: pa.Table | None = None
    for path in paths:
        for table in read_input(path, settings.source):
            try:
                held = table if held is None else pa.concat_tables([held, table], promote_options="permissive")
            except pa.ArrowException as error:
                raise UserError(f"its columns do not fit the files before it ({error})", where=path) from None
            while held.num_rows >= settings.shard_size:
                yield held.slice(0, settings.shard_size).combine_chunks()
                held = held.slice(settings.shard_size)
    if held is not None and held.num_rows:
        yield held.combine_chunks()
