"""Captions made elsewhere: a Parquet table with a `key` column, read by key in any order.

Shards ask for a thousand rows each, and nothing says that the table has their order; a Parquet row group, though, can
only be decoded whole. So the one column is decoded once, into an Arrow file in `$TMPDIR` that is mapped into memory
and vanishes with the process, as does an index of the keys. This costs each worker one pass over the table, and the
column's plain size with 36 bytes a row on disk.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import UserError
from shards.fingerprint import sha256_file
from teacher_cache.key_index import IndexWriter, KeyIndex

_BATCH = 1 << 16
_UNREADABLE = (OSError, EOFError, pa.ArrowException, UnicodeDecodeError)


class CaptionTable:
    """The values of `column` in the Parquet file at `path`, by its column `key`. Rows without a key are passed over."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column

    def check(self) -> None:
        """Raises `UserError` if the file or one of the columns is not there."""
        try:
            schema = pq.read_schema(self.path)
        except _UNREADABLE as error:
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
        index, batches = self._unpacked
        numbers, rows = index.first(keys)
        return [
            batches[number].column(0)[row].as_py() if number >= 0 else None
            for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)
        ]

    @cached_property
    def _unpacked(self) -> tuple[KeyIndex, list[Any]]:
        """Key → batch and row in it, and the batches of the column, mapped."""
        try:
            with tempfile.TemporaryFile(prefix="clipstill-") as file, IndexWriter() as writer:
                sink = None
                for number, batch in enumerate(self._batches(["key", self.column])):
                    writer.add(batch["key"].to_pylist(), number, np.arange(batch.num_rows))
                    column = batch.select([self.column])
                    sink = sink or pa.ipc.new_stream(file, column.schema)
                    sink.write_batch(column)
                index = writer.index()
                if sink is None:
                    return index, []
                sink.close()
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except _UNREADABLE as error:
            raise UserError(
                f"it cannot be unpacked ({error})",
                where=self.path,
                do=f"Check the file, and that there is room in {tempfile.gettempdir()} ($TMPDIR)",
            ) from None
        self._refuse_repeated(index)
        return index, list(pa.ipc.open_stream(pa.py_buffer(mapped)))

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path) as file:
            read = 0
            for batch in file.iter_batches(_BATCH, columns=columns):
                batch.validate(full=True)
                read += batch.num_rows
                keys = batch["key"].cast(pa.large_string())
                plain = batch.set_column(batch.schema.get_field_index("key"), "key", keys)
                yield plain.filter(keys.is_valid()) if keys.null_count else plain
            if read != file.metadata.num_rows:
                # Columns of different lengths are read as far as the shortest.
                raise EOFError(f"it has {read} rows instead of {file.metadata.num_rows}")

    def _refuse_repeated(self, index: KeyIndex) -> None:
        entry = index.repeated()
        if entry is not None:
            batch = next(islice(self._batches(["key"]), entry.file, None))
            key = batch["key"][entry.start].as_py()
            raise UserError(f"the key {key!r} stands there twice", where=self.path, do="Give each key one row")
