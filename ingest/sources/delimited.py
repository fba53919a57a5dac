"""Lists of lines: TSV and plain URLs. Only a line feed ends a line, and no character quotes another.

CC3M's captions begin with quotes, and a quote-aware reader swallows the rows that follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.sources.files import open_text
from ingest.sources.reader import LONGEST, Block, FileReader, text_schema
from shards import UserError

_BLOCK = 1 << 22
_MARK = b"\xef\xbb\xbf"


def read_lines(path: str) -> Iterator[pa.StringArray]:
    """The lines of a file, without their ends and a byte order mark, some MB at a time; each array has at least one.

    Raises `UserError` for a line longer than `LONGEST`.
    """
    with open_text(path) as file:
        held = file.read(3).removeprefix(_MARK)
        while block := file.read(_BLOCK):
            cut = block.rfind(b"\n")
            if cut < 0:
                held += block
            else:
                yield _split(held + block[:cut])
                held = block[cut + 1 :]
            if len(held) > LONGEST:
                raise UserError(f"a line is longer than {LONGEST} bytes", where=path, do="Check that this is text")
    if held:
        yield _split(held.removesuffix(b"\n"))


def _split(text: bytes) -> pa.StringArray:
    # Arrow splits a string in one pass over its bytes; the buffer is taken as it is, not copied.
    whole = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, len(text)], np.int32)), pa.py_buffer(text))
    whole.validate(full=True)
    lines = pc.split_pattern(whole, "\n").flatten()
    return pc.utf8_rtrim(lines, "\r") if pc.any(pc.ends_with(lines, "\r")).as_py() else lines


def split_fields(lines: pa.StringArray, width: int, places: Sequence[int]) -> tuple[list[pa.Array], pa.Array | None]:
    """The fields at `places` of tab-separated lines, and the lines that have not `width` fields (else null; or None).

    Of those lines every field is null.
    """
    fields = pc.split_pattern(lines, "\t")
    whole = pc.equal(pc.list_value_length(fields), width)
    if pc.all(whole).as_py():
        flat = fields.flatten()
        return [flat.take(pa.array(np.arange(place, len(flat), width))) for place in places], None
    flat = fields.filter(whole).flatten()
    row = np.cumsum(whole.to_numpy(zero_copy_only=False)) - 1
    taken = [pc.if_else(whole, pa.array(row * width + place), pa.scalar(None, pa.int64())) for place in places]
    return [flat.take(indices) for indices in taken], pc.if_else(whole, pa.scalar(None, pa.string()), lines)


class TsvReader(FileReader):
    """`header`: the columns' names if the files do not begin with them."""

    def __init__(self, header: Sequence[str] | None) -> None:
        self._header = header

    def schema(self, path: str) -> pa.Schema:
        if self._header is not None:
            return text_schema(self._header)
        first = next(read_lines(path), None)
        return text_schema([] if first is None else first[0].as_py().split("\t"))

    def blocks(self, path: str, columns: Sequence[str]) -> Iterator[Block]:
        blocks = read_lines(path)
        names = self._header
        if names is None:
            first = next(blocks)
            names = first[0].as_py().split("\t")
            blocks = chain([first[1:]], blocks)
        places = [names.index(column) for column in columns]
        for lines in blocks:
            fields, malformed = split_fields(lines, len(names), places)
            yield Block(pa.table(fields, text_schema(columns)), malformed)


class TxtReader(FileReader):
    """One URL a line; the captions are empty."""

    def schema(self, path: str) -> pa.Schema:  # noqa: ARG002 - the protocol's
        return text_schema(["url", "caption"])

    def blocks(self, path: str, columns: Sequence[str]) -> Iterator[Block]:
        for lines in read_lines(path):
            empty = pa.repeat("", len(lines))
            yield Block(pa.table({"url": lines, "caption": empty}).select(list(columns)))
