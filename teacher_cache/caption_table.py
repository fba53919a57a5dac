"""Captions made elsewhere: a Parquet table with a `key` column, read by key in any order.

Each shard asks for about a thousand rows, which may lie anywhere in the table, and a row group of Parquet can only be
decoded whole. So the captions' column is decoded once, into an Arrow file in `$TMPDIR` that is mapped into memory and
vanishes with the process. This costs each worker one pass over the table, and the plain size of the column on disk. In
memory, it takes 60 bytes a row at ten million rows.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards import UserError
from shards.fingerprint import sha256_file
from teacher_cache.key_index import KeyIndex

_BATCH = 1 << 16


class CaptionTable:
    """The values of `column` in the Parquet file at `path`, by its column `key`. Rows without a key are passed over."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column

    def check(self) -> None:
        """Raises `UserError` if the file or one of the columns is not there."""
        try:
            schema = pq.read_schema(self.path)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"not readable as Parquet ({error})", where=self.path, do="Give a Parquet file with a column `key`"
            ) from None
        for name in ("key", self.column):
            if name not in schema.names:
                raise UserError(f"it has no column {name!r}; it has {', '.join(schema.names)}", where=self.path)

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return sha256_file(Path(self.path))

    def values(self, keys: Sequence[str]) -> list[Any]:
        """What the table says of each key, None where it lacks it.

        Raises `UserError` if a key of the table has two rows, or the table cannot be unpacked.
        """
        index, starts, batches = self._unpacked
        rows = index.find(keys)
        places = np.searchsorted(starts, rows, side="right") - 1
        return [
            batches[place].column(0)[row - start].as_py() if row >= 0 else None
            for place, row, start in zip(places.tolist(), rows.tolist(), starts[places].tolist(), strict=True)
        ]

    @cached_property
    def _unpacked(self) -> tuple[KeyIndex, npt.NDArray[np.int64], list[Any]]:
        """Key → row, the row at which each batch begins, and the batches of the column, mapped."""
        index, starts, rows = KeyIndex(), [0], 0
        try:
            with tempfile.TemporaryFile(prefix="clipstill-") as file:
                sink = None
                for batch in self._batches(["key", self.column]):
                    index.add(batch["key"].to_pylist(), np.arange(rows, rows + batch.num_rows))
                    rows += batch.num_rows
                    starts.append(rows)
                    column = batch.select([self.column])
                    sink = sink or pa.ipc.new_stream(file, column.schema)
                    sink.write_batch(column)
                if sink is None:
                    return index, np.zeros(1, np.int64), []
                sink.close()
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"it cannot be unpacked ({error})",
                where=self.path,
                do=f"Check the file, and that there is room in {tempfile.gettempdir()} ($TMPDIR)",
            ) from None
        self._refuse_repeated(index)
        return index, np.array(starts[:-1], np.int64), list(pa.ipc.open_stream(pa.py_buffer(mapped)))

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                keys = batch["key"].cast(pa.large_string())
                plain = batch.set_column(batch.schema.get_field_index("key"), "key", keys)
                yield plain.filter(keys.is_valid()) if keys.null_count else plain

    def _refuse_repeated(self, index: KeyIndex) -> None:
        row = index.repeated()
        if row is None:
            return
        for batch in self._batches(["key"]):
            if row < batch.num_rows:
                key = batch["key"][row].as_py()
                raise UserError(f"the key {key!r} stands there twice", where=self.path, do="Give each key one row")
            row -= batch.num_rows
