"""Cut the input into shards before any download, so that workers, retries and order never change the output.

    settings → sources.Source → tables with keys → parts.py → duplicates.py → dataset.json

`_plan/` holds the rows of all shards with their keys. `dataset.json` is published last: once it is there the plan
stands, and an input or setting that differs from it is refused by name.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.plan.duplicates import Duplicates
from ingest.plan.parts import PLAN, read_rows, write_parts
from ingest.plan.sense import Sense
from ingest.settings import IngestSettings
from ingest.sources import Source, describe_input
from shards import Folder, UserError, fingerprint
from shards.fingerprint import first_difference
from shards.keys import check_dataset_name
from shards.reader import DATASET, SCHEMA_VERSION, read_dataset_facts

__all__ = ["PLAN", "cut", "make_plan", "read_rows", "write_parts"]

_HASHED_AT_ONCE = 2


def make_plan(settings: IngestSettings) -> dict[str, Any]:
    """Publish the plan in `settings.out`, or find it already there; returns the facts of `dataset.json`.

    Raises `UserError` for unusable input, an empty one, or a folder that holds another dataset.
    """
    check_dataset_name(settings.name)
    source = Source(settings.source)
    if source.digest_hash not in {None, settings.image.hash}:
        raise UserError(
            f"the input promises {source.digest_hash} hashes, but originals are hashed with {settings.image.hash}",
            do=f"Choose --hash {source.digest_hash}",
        )
    out = Folder(settings.out)
    with _described(source.inputs) as inputs:
        standing = read_dataset_facts(out) if out.exists(DATASET) else None
        parts = [] if standing is not None else _write(out, source, settings)
        identity = {"schema": SCHEMA_VERSION, "settings": settings.identity(), "inputs": list(inputs)}
        if standing is not None:
            _refuse_another(out, standing, identity)
            return standing
        facts = {
            **identity,
            "name": settings.name,
            "rows": sum(part["rows"] for part in parts),
            "shards": sum(part["shards"] for part in parts),
            "captioned": source.captioned,
            "fingerprint": fingerprint(identity),
            "parts": parts,
        }
        out.publish(DATASET, json.dumps(facts, indent=1).encode())
    return facts


@contextlib.contextmanager
def _described(paths: list[str]) -> Iterator[Iterator[dict[str, Any]]]:
    """What `describe_input` says of each file, worked out by threads meanwhile."""
    stop = threading.Event()
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        try:
            yield pool.map(lambda path: describe_input(path, stop), paths)
        finally:
            stop.set()


def _write(out: Folder, source: Source, settings: IngestSettings) -> list[dict[str, Any]]:
    """Write all parts; those of an earlier attempt that are no part of the plan are removed."""
    with Duplicates(settings.name) as duplicates:
        sense = Sense()
        tables = cut(_planned(source, settings.name, duplicates, sense), settings.shard_size)
        parts = write_parts(out, "", tables)
        sense.refuse_nonsense(settings.source, ", ".join(source.paths))
        parts = duplicates.mark(out, parts)
    for name in set(out.child(PLAN).names()) - {part["name"] for part in parts}:
        out.child(PLAN).delete(name)
    return parts


def _planned(source: Source, dataset: str, duplicates: Duplicates, sense: Sense) -> Iterator[pa.Table]:
    """The input's rows with every column that a plan has."""
    rows = 0
    for table in source.tables():
        duplicates.add(table)
        sense.see(table)
        numbers = pc.utf8_lpad(pa.array(np.arange(rows, rows + table.num_rows)).cast(pa.string()), 9, "0")
        rows += table.num_rows
        columns = {
            "key": pc.binary_join_element_wise(f"{dataset}-", numbers, ""),
            "url": table["url"],
            "caption": table["caption"],
            "captions": table["captions"],
            "duplicate_of": pa.nulls(table.num_rows, pa.string()),
        }
        yield pa.table(columns | {name: table[name] for name in table.column_names if name not in columns})


def cut(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """Tables of exactly `size` rows, the last one shorter; shards run on across files."""
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


def _refuse_another(out: Folder, standing: dict[str, Any], identity: dict[str, Any]) -> None:
    if standing["fingerprint"] == fingerprint(identity):
        return
    difference = (
        first_difference(standing["settings"], identity["settings"])
        or _changed_input(_by_name(standing["inputs"]), _by_name(identity["inputs"]))
        or "the inputs come in another order"
    )
    raise UserError(
        f"this folder holds another dataset: {difference}",
        where=str(out),
        do="Write to another folder, or restore what was changed",
    )


def _changed_input(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    for name in [*before, *after]:
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            return f"input {name} {'is new' if old is None else 'is not among the inputs any more'}"
        if old != new:
            if old["bytes"] != new["bytes"]:
                return f"input {name} has changed ({old['bytes']:,} bytes, now {new['bytes']:,})"
            return f"input {name} has changed (sha256 {old['sha256'][:16]}..., now {new['sha256'][:16]}...)"
    return None


def _by_name(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Input files by their names; of those that share one (in several folders), by its later occurrences too."""
    named: dict[str, Any] = {}
    for entry in inputs:
        name, number = entry["name"], 2
        while name in named:
            name, number = f"{entry['name']} ({number})", number + 1
        named[name] = entry
    return named
