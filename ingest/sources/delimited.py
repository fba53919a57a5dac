"""Lists of lines: TSV and plain URLs. Only a line feed ends a line, and no character quotes another.

CC3M's captions begin with quotes, and a quote-aware reader swallows the rows that follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.sources.columns import Chosen
from ingest.sources.quoted import looks_quoted
from ingest.sources.reader import Block, Fault, FileReader, field_count, take_or_null, text_schema
from ingest.sources.text import Lines, read_lines, stray
from shards import UserError

_LOOKED_AT = 1000
"""Lines by which it is judged how many fields they have."""


def split_fields(
    lines: Lines, width: int, places: Sequence[int], encoding: str
) -> tuple[list[pa.Array], dict[int, Fault]]:
    """The fields at `places` of tab-separated lines, each as long as `lines`, and the faults of those that are no rows.

    A row has `width` fields and no stray bytes. Of the other lines every field is null.
    """
    fields = pc.split_pattern(lines.texts, "\t")
    counts = pc.list_value_length(fields)
    whole = pc.equal(counts, width)
    if lines.stray is not None:
        whole = pc.and_(whole, pa.array(~lines.stray))
    faults: dict[int, Fault] = {}
    if pc.all(whole).as_py():
        flat = fields.flatten()
        taken = [flat.take(pa.array(np.arange(place, len(flat), width))) for place in places]
    else:
        flat = fields.filter(whole).flatten()
        sound = whole.to_numpy(zero_copy_only=False)
        row = np.cumsum(sound) - 1
        taken = [
            take_or_null(flat, pc.if_else(whole, pa.array(row * width + at), pa.scalar(None, pa.int64())))
            for at in places
        ]
        for place in np.flatnonzero(~sound).tolist():
            text = lines.texts[place].as_py()
            is_stray = lines.stray is not None and lines.stray[place]
            why = stray(encoding) if is_stray else field_count(counts[place].as_py(), width) if text else "it is blank"
            faults[place] = Fault(text, f"line {lines.numbers[place]}: {why}")
    assert all(len(field) == len(lines) for field in taken)
    return taken, faults


class TsvReader(FileReader):
    """`headers`: what the columns may be called in files that do not begin with their names, by how many they are."""

    def __init__(self, headers: Sequence[Sequence[str]], encoding: str) -> None:
        self._headers, self._encoding = headers, encoding

    def schema(self, path: str) -> pa.Schema:
        first = next(read_lines(path, self._encoding), None)
        if first is None:
            return text_schema(self._headers[0] if self._headers else [])
        return text_schema(self._names(path, first))

    def _names(self, path: str, first: Lines) -> Sequence[str]:
        if len(self._headers) == 1:
            return self._headers[0]
        if self._headers:
            widths = Counter(line.count("\t") + 1 for line in first.texts[:_LOOKED_AT].to_pylist())
            return max(self._headers, key=lambda header: widths[len(header)])
        if first.stray is not None and first.stray[0]:
            raise UserError(f"its first line has {stray(self._encoding)}", where=path)
        names: list[str] = first.texts[0].as_py().split("\t")
        if looks_quoted(first.texts[:_LOOKED_AT].to_pylist(), len(names)):
            raise UserError("its fields are quoted, as those of a CSV may be", where=path, do="Give --quoted")
        return names

    def blocks(self, path: str, chosen: Chosen) -> Iterator[Block]:
        blocks = read_lines(path, self._encoding)
        first = next(blocks, None)
        if first is None:
            return
        names = self._names(path, first)
        places = [names.index(column) for column in chosen.all]
        for lines in chain([first if self._headers else first.without_first()], blocks):
            fields, faults = split_fields(lines, len(names), places, self._encoding)
            yield Block(pa.table(fields, text_schema(chosen.all)), faults)


class TxtReader(FileReader):
    """One URL a line; the captions are empty."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding

    def schema(self, path: str) -> pa.Schema:  # noqa: ARG002 - the protocol's
        return text_schema(["url", "caption"])

    def blocks(self, path: str, chosen: Chosen) -> Iterator[Block]:
        for lines in read_lines(path, self._encoding):
            urls, empty, faults = lines.texts, pa.repeat("", len(lines)), {}
            if lines.stray is not None:
                nothing = pa.scalar(None, pa.string())
                urls, empty = (pc.if_else(pa.array(lines.stray), nothing, values) for values in (urls, empty))
                faults = {
                    place: Fault(lines.texts[place].as_py(), f"line {lines.numbers[place]}: {stray(self._encoding)}")
                    for place in np.flatnonzero(lines.stray).tolist()
                }
            yield Block(pa.table({"url": urls, "caption": empty}).select(chosen.all), faults)
