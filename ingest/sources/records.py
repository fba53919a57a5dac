"""Text whose rows only a parser finds: CSV as in RFC 4180, and JSON objects one a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa

from ingest.sources.delimited import read_lines
from ingest.sources.files import open_text
from ingest.sources.reader import LONGEST, Block, FileReader, text_schema

_ROWS = 10_000
_SAMPLED = 1_000
"""JSON lines whose names are taken for those of all."""


class CsvReader(FileReader):
    def schema(self, path: str) -> pa.Schema:
        with _csv_rows(path) as rows:
            return text_schema(next(rows, []))

    def blocks(self, path: str, columns: Sequence[str]) -> Iterator[Block]:
        with _csv_rows(path) as rows:
            names = next(rows)
            places = [names.index(column) for column in columns]
            while batch := list(islice(rows, _ROWS)):
                malformed = None
                if any(len(row) != len(names) for row in batch):
                    texts = ["\t".join(row) if len(row) != len(names) else None for row in batch]
                    malformed = pa.array(texts, pa.string())
                fields = list(
                    zip(*(row if len(row) == len(names) else [None] * len(names) for row in batch), strict=True)
                )
                arrays = [pa.array(fields[place], pa.string()) for place in places]
                yield Block(pa.table(arrays, text_schema(columns)), malformed)


@contextmanager
def _csv_rows(path: str) -> Iterator[Iterator[list[str]]]:
    csv.field_size_limit(LONGEST)
    # newline="" leaves line ends inside quoted fields alone. Strict, because a quote that never closes would swallow
    # the rows after it.
    with open_text(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        yield csv.reader(text, strict=True)


class JsonlReader(FileReader):
    """Values that are no text become JSON text; a name that an object lacks is null."""

    def schema(self, path: str) -> pa.Schema:
        lines = next(read_lines(path), None)
        rows = [] if lines is None else [_parse(line) for line in lines[:_SAMPLED].to_pylist()]
        return text_schema(list(dict.fromkeys(name for row in rows if row is not None for name in row)))

    def blocks(self, path: str, columns: Sequence[str]) -> Iterator[Block]:
        for lines in read_lines(path):
            texts = lines.to_pylist()
            rows = [_parse(text) for text in texts]
            arrays = [
                pa.array([None if row is None else _text(row.get(column)) for row in rows], pa.string())
                for column in columns
            ]
            malformed = None
            if None in rows:
                malformed = pa.array([text if row is None else None for row, text in zip(rows, texts, strict=True)])
            yield Block(pa.table(arrays, text_schema(columns)), malformed)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # JSON can spell half of a surrogate pair, which no UTF-8 can hold.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
