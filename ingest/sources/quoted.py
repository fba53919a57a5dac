"""CSV as in RFC 4180, and TSV quoted in the same way. A fault costs the line it is in.

A record ends with its line, unless a quote is open: then it goes on with the next line. It is a row if three things
hold: its quotes are closed, it has a field for each column, and none of its further lines is a row by itself. The last
is because a quoted caption may contain line breaks, but a line that has all fields and a URL in its place shows that
the quote before it was never closed. Where one of the three fails, the record's first line becomes one faulty row, and
reading goes on at the line after it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from ingest.sources.columns import Chosen
from ingest.sources.reader import LONGEST, Block, Fault, FileReader, field_count, text_schema
from ingest.sources.text import STRAY, decode, read_blocks, readable, stray
from shards import UserError

if TYPE_CHECKING:
    from _csv import Reader as _Reader

_BLOCK = 1 << 20
_OPEN = 1 << 22
"""The most characters over which a quote may stay open past its line."""
_URL = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
UNCLOSED = "a quote that is not closed"


class QuotedReader(FileReader):
    """`header`: the columns' names if the files do not begin with them."""

    def __init__(self, delimiter: str, header: Sequence[str] | None, encoding: str) -> None:
        self._delimiter, self._header, self._encoding = delimiter, header, encoding

    def schema(self, path: str) -> pa.Schema:
        names, _ = self._head(path, next(self._lines(path), None) or _Text([], False))
        return text_schema(names)

    def blocks(self, path: str, chosen: Chosen) -> Iterator[Block]:
        held, number, grammar = _Text([], False), 1, None
        for block in self._lines(path):
            text = _Text(held.lines + block.lines, held.is_stray or block.is_stray)
            if grammar is None:
                names, used = self._head(path, text)
                text, number = _Text(text.lines[used:], text.is_stray), number + used
                places = [names.index(column) for column in chosen.all]
                grammar = _Grammar(self._delimiter, len(names), names.index(chosen.url), self._encoding)
            rows, faults, used = grammar.parse(text, number, is_last=False)
            yield _block(rows, faults, chosen.all, places)
            held, number = _Text(text.lines[used:], text.is_stray), number + used
        if grammar is not None and held.lines:
            rows, faults, _ = grammar.parse(held, number, is_last=True)
            yield _block(rows, faults, chosen.all, places)

    def _lines(self, path: str) -> Iterator[_Text]:
        for block in read_blocks(path, self._encoding, (b"\n", b"\r"), _BLOCK):
            text, is_stray = decode(block)
            # Carriage returns end lines too, and those inside quotes stay as they are.
            yield _Text(list(io.StringIO(text, newline="")), is_stray)

    def _head(self, path: str, text: _Text) -> tuple[Sequence[str], int]:
        """The columns' names, and how many lines they take."""
        if self._header is not None:
            return self._header, 0
        reader = _reader(iter(text.lines), self._delimiter)
        try:
            names: list[str] = next(reader, [])
        except csv.Error as error:
            raise UserError(f"its first line, with the columns' names, is broken ({error})", where=path) from None
        if any(map(STRAY.search, names)):
            raise UserError(f"its first line has {stray(self._encoding)}", where=path)
        if not names and text.lines:
            raise UserError(
                "its first line is blank", where=path, do="Begin with the columns' names, or give --columns"
            )
        return names, reader.line_num


class _Text(NamedTuple):
    """Lines with their ends. `is_stray`: some may have bytes that are no text, as halves of surrogate pairs."""

    lines: list[str]
    is_stray: bool


_Rows = list[list[str] | None]


class _Grammar:
    """What is a row of `width` fields of which the one at `url` is the URL."""

    def __init__(self, delimiter: str, width: int, url: int, encoding: str) -> None:
        self._delimiter, self._width, self._url, self._encoding = delimiter, width, url, encoding
        field = f'(?:"(?:[^"]|"")*"|[^"{delimiter}]*)'
        self._complete = re.compile(f"{field}(?:{delimiter}{field}){{{width - 1}}}")

    def parse(self, text: _Text, number: int, *, is_last: bool) -> tuple[_Rows, dict[int, Fault], int]:
        """The rows of lines of which the first has `number`; None for those that have a fault, which are by place.

        Third comes how many lines were used: unless it `is_last`, a record may go on after the text.
        """
        if not text.is_stray:
            try:
                rows: _Rows = list(_reader(iter(text.lines), self._delimiter))
            except csv.Error:
                pass
            else:
                if len(rows) == len(text.lines) and all(len(row or ()) == self._width for row in rows):
                    return rows, {}, len(text.lines)
        return self._parse_each(text, number, is_last)

    def _parse_each(self, text: _Text, number: int, is_last: bool) -> tuple[_Rows, dict[int, Fault], int]:
        lines, at, base = text.lines, 0, 0
        rows: _Rows = []
        faults: dict[int, Fault] = {}
        reader = _reader(iter(lines), self._delimiter)
        while at < len(lines):
            row: list[str] | None = None
            why: str | None = None
            try:
                row = next(reader)
            except csv.Error as error:
                why = f"its quotes or fields are broken ({error})"
            end = base + reader.line_num
            is_open = row is None and end == len(lines) and _is_open(lines[at:end], self._delimiter)
            if end - at > 1 or is_open:
                swallows = any(map(self._is_row, lines[at + 1 : end])) or sum(map(len, lines[at:end])) > _OPEN
                if swallows or (is_open and is_last):
                    why = UNCLOSED
                elif is_open:
                    break
            if why is None and row is not None and len(row) != self._width:
                why = field_count(len(row), self._width) if row else "it is blank"
            if why is None and text.is_stray and row is not None and any(map(STRAY.search, row)):
                why = stray(self._encoding)
            elif why is not None:
                end = at + 1
            if why is not None:
                faults[len(rows)] = Fault(readable("".join(lines[at:end]).rstrip("\r\n")), f"line {number + at}: {why}")
                row = None
            rows.append(row)
            if end != base + reader.line_num:
                reader, base = _reader(_after(lines, end), self._delimiter), end
            at = end
        return rows, faults, at

    def _is_row(self, line: str) -> bool:
        line = line.rstrip("\r\n")
        if self._complete.fullmatch(line) is None:
            return False
        (row,) = _reader(iter([line]), self._delimiter)
        return len(row) == self._width and _URL.match(row[self._url]) is not None


def _reader(lines: Iterator[str], delimiter: str) -> _Reader:
    csv.field_size_limit(LONGEST)
    return csv.reader(lines, strict=True, delimiter=delimiter)


def _is_open(lines: Sequence[str], delimiter: str) -> bool:
    """Whether a quote is open after all of them."""
    try:
        list(_reader(iter([*lines, '"']), delimiter))
    except csv.Error:
        return False
    return True


def _after(lines: Sequence[str], start: int) -> Iterator[str]:
    # Not a slice: there may be a fault in every line.
    return (lines[place] for place in range(start, len(lines)))


def _block(rows: _Rows, faults: dict[int, Fault], columns: Sequence[str], places: Sequence[int]) -> Block:
    if faults:
        fields = [[None if row is None else row[place] for row in rows] for place in places]
    else:
        fields = [[row[place] for row in rows] for place in places]  # type: ignore[index]
    return Block(pa.table([pa.array(field, pa.string()) for field in fields], text_schema(columns)), faults)


def looks_quoted(lines: Sequence[str], width: int) -> bool:
    """Whether lines of TSV, the first with the names of `width` columns, make sense only if their quotes are heeded."""
    if all(line.count("\t") == width - 1 for line in lines):
        return False
    reader = _reader(iter(lines), "\t")
    rows = 0
    try:
        for row in reader:
            if len(row) != width:
                return False
            rows += 1
    except csv.Error:
        # The last line that is looked at may be in the middle of a row.
        if reader.line_num < len(lines):
            return False
    return rows > 1
