from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from shards import FileEntry, Folder, read_records


@pytest.fixture(scope="session", autouse=True)
def _quiet(one_thread: None) -> None:
    """Every test here computes on one thread."""


@pytest.fixture(scope="session")
def forge() -> Callable[[str | Path, int, Callable[[pa.Table], pa.Table]], None]:
    """`forge(layer, shard, change)`: rewrite a file of a layer and its record, so that its hash is right."""

    def rewrite(layer: str | Path, shard: int, change: Callable[[pa.Table], pa.Table]) -> None:
        folder = Folder(layer)
        record = read_records(folder)[shard]
        path = folder.path / f"{shard:05d}.arrow"
        with pa.memory_map(str(path)) as source:
            table = change(pa.ipc.open_file(source).read_all())
        with pa.ipc.new_file(str(path.with_suffix(".new")), table.schema) as sink:
            sink.write_table(table.combine_chunks())
        path.with_suffix(".new").replace(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        forged = replace(record, files=(FileEntry(path.name, path.stat().st_size, digest),))
        folder.child("_records").delete(str(record.name))
        folder.child("_records").publish(str(forged.name), forged.to_json().encode())

    return rewrite
