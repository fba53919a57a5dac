"""A table beside a dataset: its columns by key, for samples in any order, whatever the order of its rows.

A Parquet row group can only be decoded whole. So the columns are decoded once, into an Arrow file in `$TMPDIR` that is
mapped into memory and vanishes with the process, as does an index of the keys: their plain size, and 36 bytes a row, on
disk. Of a table that is in memory only the index is made.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import stores
from shards.errors import UserError
from shards.key_index import IndexWriter, KeyIndex
from shards.ranges import open_file

_BATCH = 1 << 16
_UNREADABLE = (OSError, EOFError, pa.ArrowException, UnicodeDecodeError)
"""What damaged Parquet makes of its reader."""
KEY = "key"
_INDEX_OF_PANDAS = "__index_level_"


@runtime_checkable
class ArrowTable(Protocol):
    """Whatever hands itself over as Arrow: tables of pyarrow, pandas, polars."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...


class SideTable:
    """Rows by key: `columns` are the names beside the key. Rows without a key are passed over."""

    def __init__(self, columns: Sequence[str], batches: list[pa.RecordBatch], index: KeyIndex, rows: int) -> None:
        self.columns, self._batches, self._index, self._rows = tuple(columns), batches, index, rows

    def __len__(self) -> int:
        return self._rows

    @staticmethod
    def of(table: str | os.PathLike[str] | ArrowTable) -> SideTable:
        """A Parquet file by its path, or a table of Arrow or pandas, with a column `key`.

        Raises `UserError` if it has no such column, or none beside it, or names a key twice.
        """
        if isinstance(table, str | os.PathLike):
            return SideTable.read(os.fspath(table))
        if not isinstance(table, ArrowTable):
            raise UserError(
                f"a {type(table).__name__} is no table", do="Give the path of a Parquet file, or one of Arrow or pandas"
            )
        whole = pa.table(table)
        columns = _check(whole.schema, None, "the table")
        return _indexed(
            columns, _keyed(whole.select([KEY, *columns]).to_batches(_BATCH), "the table"), "the table", on_disk=False
        )

    @staticmethod
    def read(path: str, columns: Sequence[str] | None = None) -> SideTable:
        """The Parquet file at `path`, or `columns` of it alone.

        Raises `UserError` if it cannot be read, lacks a column, or names a key twice.
        """
        columns = _check(schema_of(path), columns, path)
        try:
            return _indexed(columns, _keyed(_parquet(path, columns), path), path, on_disk=True)
        except _UNREADABLE as error:
            raise UserError(
                f"it cannot be unpacked ({error})",
                where=path,
                do=f"Check the file, and that there is room in {tempfile.gettempdir()} ($TMPDIR)",
            ) from None

    def values(self, column: str, keys: Sequence[str]) -> list[Any]:
        """What a column says of each key, None where there is no row."""
        return [None if row is None else row[column] for row in self.rows(keys)]

    def has_any(self, keys: Sequence[str]) -> bool:
        """Whether one of these keys has a row."""
        return bool((self._index.first(keys)[0] >= 0).any())

    def rows(self, keys: Sequence[str]) -> list[dict[str, Any] | None]:
        """Each key's row as column → value; None where there is none."""
        numbers, rows = self._index.first(keys)
        return [
            {name: self._batches[number][name][row].as_py() for name in self.columns} if number >= 0 else None
            for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)
        ]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A file anywhere; pyarrow by itself would go to a store without our settings, and for minutes."""
    try:
        file = open_file(path)
    except Exception as error:
        if isinstance(error, OSError) or (known := stores.told(error)) is None:
            raise
        raise UserError(known[0], where=path, do=known[1]) from None
    with file:
        yield file


def schema_of(path: str) -> pa.Schema:
    """Which columns a Parquet file has. Raises `UserError` if it is none."""
    try:
        with _opened(path) as file:
            return pq.read_schema(file)
    except _UNREADABLE as error:
        raise UserError(
            f"not readable as Parquet ({error})", where=path, do="Give a Parquet file with a column `key`"
        ) from None


def _check(schema: pa.Schema, columns: Sequence[str] | None, where: str) -> list[str]:
    """The columns that are wanted beside the key, all unless named."""
    names = [name for name in schema.names if not name.startswith(_INDEX_OF_PANDAS)]
    found = list(columns) if columns is not None else [name for name in names if name != KEY]
    for name in (KEY, *found):
        if name not in names:
            raise UserError(f"it has no column {name!r}; it has {', '.join(names)}", where=where)
    if not found or len(set(names)) < len(names):
        wrong = "it has no column beside `key`" if not found else "two of its columns have the same name"
        raise UserError(wrong, where=where, do="Give a column `key`, and others, each with a name of its own")
    return found


def _parquet(path: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _opened(path) as opened, pq.ParquetFile(opened) as file:
        read = 0
        for batch in file.iter_batches(_BATCH, columns=[KEY, *columns]):
            batch.validate(full=True)
            read += batch.num_rows
            yield batch
        if read != file.metadata.num_rows:
            # Columns of different lengths are read as far as the shortest.
            raise EOFError(f"it has {read} rows instead of {file.metadata.num_rows}")


def _keyed(batches: Iterable[pa.RecordBatch], where: str) -> Iterator[pa.RecordBatch]:
    """With keys as text, and without the rows that have none."""
    for batch in batches:
        try:
            keys = batch[KEY].cast(pa.large_string())
        except pa.ArrowException as error:
            raise UserError(f"its keys are no text ({error})", where=where, do="Give a column `key` of texts") from None
        plain = batch.set_column(batch.schema.get_field_index(KEY), KEY, keys)
        yield plain.filter(keys.is_valid()) if keys.null_count else plain


def _indexed(columns: Sequence[str], batches: Iterator[pa.RecordBatch], where: str, *, on_disk: bool) -> SideTable:
    held: list[pa.RecordBatch] = []
    with tempfile.TemporaryFile(prefix="clipstill-") as file, IndexWriter() as writer:
        sink = None
        for number, batch in enumerate(batches):
            writer.add(batch[KEY].to_pylist(), number, np.arange(batch.num_rows))
            if on_disk:
                sink = sink or pa.ipc.new_stream(file, batch.schema)
                sink.write_batch(batch)
            else:
                held.append(batch)
        index, rows = writer.index(), writer.rows
        if sink is not None:
            sink.close()
            file.flush()
            held = list(pa.ipc.open_stream(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))))
    entry = index.repeated()
    if entry is not None:
        key = next(islice(held, entry.file, None))[KEY][entry.start].as_py()
        raise UserError(f"the key {key!r} stands there twice", where=where, do="Give each key one row")
    return SideTable(columns, held, index, rows)
