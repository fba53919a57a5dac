"""Parquet: types and nulls are kept; only the columns that are needed are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.sources.files import open_raw
from ingest.sources.reader import Block, FileReader

_ROWS = 1 << 14
_BUFFER = 1 << 16


class ParquetReader(FileReader):
    def schema(self, path: str) -> pa.Schema:
        with open_raw(path) as file:
            schema = pq.ParquetFile(file).schema_arrow
        return pa.schema([field.with_type(_plain(field.type)) for field in schema])

    def rows(self, path: str) -> int:
        """How many rows a file has."""
        with open_raw(path) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)

    def blocks(self, path: str, columns: Sequence[str], skip: int = 0) -> Iterator[Block]:
        """As in the protocol, but from row `skip` of the file on: row groups before it are not read."""
        with open_raw(path) as file:
            # Otherwise the columns of a row group, which may be all of a file, are read whole.
            parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
            first, groups = 0, parquet.metadata.num_row_groups
            while first < groups and skip >= (rows := parquet.metadata.row_group(first).num_rows):
                first, skip = first + 1, skip - rows
            for batch in parquet.iter_batches(_ROWS, columns=list(columns), row_groups=range(first, groups)):
                if skip >= batch.num_rows:
                    skip -= batch.num_rows
                    continue
                table = pa.Table.from_batches([batch.slice(skip)]).select(list(columns))
                skip = 0
                plain = pa.schema([field.with_type(_plain(field.type)) for field in table.schema])
                yield Block(table.cast(plain))


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that a plan keeps: files of one dataset may hold the same text in different encodings."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind
