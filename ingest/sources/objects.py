"""JSON objects, one a line or in one array. Values that are no text become JSON text; a name that is absent is null.

A caption may be a text, several in a list, or a number; NaN, which is how a missing one is often written, is null.

Of an array that is broken somewhere, the next row is the next object that follows another one after a comma.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from ingest.sources.columns import Chosen
from ingest.sources.reader import LONGEST, Block, Fault, FileReader, text_schema
from ingest.sources.text import STRAY, decode, read_blocks, read_lines, readable, stray
from shards import UserError

_ROWS = 10_000
_SAMPLED = 1_000
"""Objects whose names are taken for those of all."""
_ENDS = (b"\n", b",", b"}")
_BETWEEN = re.compile(r"[\s,]*")
_AFTER_COMMA = re.compile(r",\s*\{")
_SHORT = 16
"""Characters: longer than a literal, an escape, or what stands between two items."""
_NO_OBJECT = "JSON, but no object"

_Row = dict[str, Any]


class JsonReader(FileReader):
    """A file may hold either form; its first character tells."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding

    def schema(self, path: str) -> pa.Schema:
        rows = list(islice(self._rows(path), _SAMPLED))
        names = list(dict.fromkeys(name for row in rows if not isinstance(row, Fault) for name in row))
        if not names and rows and isinstance(rows[0], Fault):
            do = "Give one object a line, or an array of them"
            raise UserError(f"its first {len(rows)} rows are no JSON objects ({rows[0].why})", where=path, do=do)
        return text_schema(names)

    def blocks(self, path: str, chosen: Chosen) -> Iterator[Block]:
        rows = self._rows(path, chosen.caption)
        while batch := list(islice(rows, _ROWS)):
            faults = {place: row for place, row in enumerate(batch) if isinstance(row, Fault)}
            arrays = [
                pa.array([None if isinstance(row, Fault) else _text(row.get(column)) for row in batch], pa.string())
                for column in chosen.all
            ]
            yield Block(pa.table(arrays, text_schema(chosen.all)), faults)

    def _rows(self, path: str, caption: str | None = None) -> Iterator[_Row | Fault]:
        """Objects and what is none; with the name of the `caption`, those whose caption is none are faults too."""
        head = next(read_blocks(path, self._encoding, _ENDS), b"")
        is_array = head.lstrip().startswith(b"[")
        return self._in_array(path, caption) if is_array else self._in_lines(path, caption)

    def _in_lines(self, path: str, caption: str | None) -> Iterator[_Row | Fault]:
        for lines in read_lines(path, self._encoding):
            for place, text in enumerate(lines.texts.to_pylist()):
                is_stray = lines.stray is not None and lines.stray[place]
                row = stray(self._encoding) if is_stray else _captioned(_parse(text), caption)
                yield Fault(text, f"line {lines.numbers[place]}: {row}") if isinstance(row, str) else row

    def _in_array(self, path: str, caption: str | None) -> Iterator[_Row | Fault]:
        for number, (raw, row) in enumerate(_Array(read_blocks(path, self._encoding, _ENDS)).items(), 1):
            found = stray(self._encoding) if STRAY.search(raw) else _captioned(row, caption)
            if isinstance(found, str):
                yield Fault(readable(raw).rstrip(), f"item {number}: {found}")
            else:
                yield found


class _Array:
    """The items of a JSON array of which no more is held than the item that is being read and a few MB."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._decode = blocks, json.JSONDecoder().raw_decode
        self._text, self._at = "", 0

    def items(self) -> Iterator[tuple[str, _Row | str]]:
        """Each item as it stands there, and as an object, or why it is none."""
        while self._next() == "[":
            self._at += 1
            while (sign := self._next()) != "]":
                if not sign:
                    yield "", "the array does not end"
                    return
                raw, row = self._item()
                yield raw, row
                if isinstance(row, str) and not self._next():
                    return
            self._at += 1
        if self._next():
            yield self._text[self._at :], "this stands behind the array"

    def _more(self) -> bool:
        block = next(self._blocks, None)
        if block is None or len(self._text) - self._at > LONGEST:
            return False
        self._text, self._at = self._text[self._at :] + decode(block)[0], 0
        return True

    def _next(self) -> str:
        """The next character that is neither white space nor a comma; empty at the end."""
        while True:
            match = _BETWEEN.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _item(self) -> tuple[str, _Row | str]:
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
                # A string that does not end, or an error at the very end, may be no more than the end of what is held.
                may_go_on = "Unterminated" in str(error) or at > len(self._text) - _SHORT
                if may_go_on and self._more():
                    continue
                return self._skip(at), _why(error)
            raw, self._at = self._text[self._at : end], end
            return raw, value if isinstance(value, dict) else _NO_OBJECT

    def _skip(self, broken: int) -> str:
        """Go on to what may be the next item after a place where this one is broken; returns what is passed over."""
        begin, broken = 0, broken - self._at
        while True:
            for match in _AFTER_COMMA.finditer(self._text, self._at + begin):
                if match.end() > self._at + max(broken, 1):
                    raw, self._at = self._text[self._at : match.start()], match.end() - 1
                    return raw
            begin = max(len(self._text) - self._at - _SHORT, 0)
            if not self._more():
                end = self._text.rfind("]", self._at)
                end = end if end >= 0 and not self._text[end + 1 :].strip() else len(self._text)
                raw, self._at = self._text[self._at : end], end
                return raw


def _parse(line: str) -> _Row | str:
    """An object, or why there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _why(error) if line.strip() else "it is blank"
    return row if isinstance(row, dict) else _NO_OBJECT


def _why(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON ({error.msg}, at character {error.colno})"
    return "JSON that is nested too deeply" if isinstance(error, RecursionError) else f"no JSON ({error})"


def _captioned(row: _Row | str, name: str | None) -> _Row | str:
    """An object with its caption as text, texts, a number or null; or why it has none."""
    if isinstance(row, str) or name is None:
        return row
    value = row.get(name)
    if value is None or isinstance(value, str):
        return row
    items = [None if _is_nan(item) else item for item in (value if isinstance(value, list) else [value])]
    kinds = (str,) if isinstance(value, list) else (int, float)
    for item in items:
        if item is not None and (not isinstance(item, kinds) or isinstance(item, bool)):
            of = "a list with " if isinstance(value, list) else ""
            return f"the caption {name!r} is {of}{_KINDS[type(item)]}, no text"
    return row | {name: items if isinstance(value, list) else items[0]}


_KINDS = {bool: "true or false", dict: "an object", list: "a list", int: "a number", float: "a number"}


def _is_nan(value: Any) -> bool:
    """Whether it is a number that says nothing: NaN, or an infinite one."""
    return isinstance(value, float) and not math.isfinite(value)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # JSON can spell half of a surrogate pair, which no UTF-8 can hold.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
