"""Parquet: types and nulls are kept; only the columns that are needed are read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.sources.columns import Chosen
from ingest.sources.files import open_raw
from ingest.sources.reader import Block, Fault, FileReader, take_or_null
from ingest.sources.text import UTF8, stray

_ROWS = 1 << 14
_BUFFER = 1 << 16


class ParquetReader(FileReader):
    """`encoding` is that of text. A row is faulty if what should be text is none, be its column of text or of bytes."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding

    def schema(self, path: str) -> pa.Schema:
        with open_raw(path) as file:
            schema = pq.ParquetFile(file).schema_arrow
        return pa.schema([field.with_type(_plain(field.type)) for field in schema])

    def rows(self, path: str) -> int:
        """How many rows a file has."""
        with open_raw(path) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)

    def blocks(self, path: str, chosen: Chosen, skip: int = 0) -> Iterator[Block]:
        """As in the protocol, but from row `skip` of the file on: row groups before it are not read."""
        number = 1 + skip
        with open_raw(path) as file:
            # Otherwise the columns of a row group, which may be all of a file, are read whole.
            parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
            if not chosen.all:
                # Images without anything beside them: of no column there are no rows to be read.
                for start in range(skip, parquet.metadata.num_rows, _ROWS):
                    count = min(_ROWS, parquet.metadata.num_rows - start)
                    yield Block(pa.table({"": pa.nulls(count)}), {})
                return
            first, groups = 0, parquet.metadata.num_row_groups
            while first < groups and skip >= (rows := parquet.metadata.row_group(first).num_rows):
                first, skip = first + 1, skip - rows
            for batch in parquet.iter_batches(_ROWS, columns=chosen.all, row_groups=range(first, groups)):
                over = min(skip, batch.num_rows)
                skip -= over
                if over < batch.num_rows:
                    yield self._block(batch.select(chosen.all).slice(over), chosen, number)
                    number += batch.num_rows - over

    def _block(self, batch: pa.RecordBatch, chosen: Chosen, number: int) -> Block:
        columns: dict[str, pa.Array] = {}
        bad = np.zeros(batch.num_rows, np.bool_)
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            columns[name], unsound = self._sound(values, is_text=name in chosen.texts)
            if name == chosen.caption and pa.types.is_floating(columns[name].type):
                # NaN is how a missing one is written where a column of numbers is all that is left.
                finite = pc.is_finite(columns[name].cast(pa.float64()))
                columns[name] = pc.if_else(finite, columns[name], pa.scalar(None, columns[name].type))
            assert len(columns[name]) == len(unsound) == batch.num_rows
            bad |= unsound
        if not bad.any():
            return Block(pa.table(columns), {})
        faults = {}
        for place in np.flatnonzero(bad).tolist():
            row = [_shown(batch[name].slice(place, 1)) for name in chosen.texts]
            faults[place] = Fault("\t".join(row), f"row {number + place}: {stray(self._encoding)}")
        places = pa.array(np.arange(len(bad)), mask=bad)
        return Block(pa.table({name: take_or_null(values, places) for name, values in columns.items()}), faults)

    def _sound(self, values: pa.Array, *, is_text: bool) -> tuple[pa.Array, np.ndarray]:
        """A column in the type that a plan keeps, and which of its values hold bytes that are no text."""
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        none = np.zeros(len(values), np.bool_)
        if not (_is_string(values.type) or (is_text and _is_bytes(values.type))):
            try:
                values.validate(full=True)
            except pa.ArrowInvalid:
                bad = np.array(
                    [not _is_valid(values.take(pa.array([place]))) for place in range(len(values))], np.bool_
                )
                return take_or_null(values, pa.array(np.arange(len(bad)), mask=bad)), bad
            return values.cast(_plain(values.type)), none
        if self._encoding == UTF8:
            try:
                texts = values.cast(pa.string())
                texts.validate(full=True)
            except pa.ArrowInvalid:
                pass
            else:
                return texts, none
        raw: list[bytes | None] = values.cast(pa.large_binary()).to_pylist()
        decoded = [None if value is None else _decoded(value, self._encoding) for value in raw]
        bad = np.array([text is None and value is not None for text, value in zip(decoded, raw, strict=True)], np.bool_)
        return pa.array(decoded, pa.string()), bad


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type that a plan keeps: files of one dataset may hold the same text in different encodings."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _is_string(kind: pa.DataType) -> bool:
    return any(is_it(kind) for is_it in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_it(kind) for is_it in kinds)


def _is_valid(values: pa.Array) -> bool:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decoded(value: bytes, encoding: str) -> str | None:
    try:
        text = value.decode(encoding)
        text.encode()  # some encodings can spell half of a surrogate pair
    except UnicodeError:
        return None
    return text


def _shown(value: pa.Array) -> str:
    """A single value for people."""
    if pa.types.is_dictionary(value.type):
        value = value.dictionary_decode()
    if _is_string(value.type) or _is_bytes(value.type):
        (raw,) = value.cast(pa.large_binary()).to_pylist()
        return (raw or b"").decode(errors="replace")
    return "" if value.null_count else str(value[0]) if _is_valid(value) else "\ufffd"
