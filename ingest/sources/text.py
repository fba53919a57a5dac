"""Lines of text in any encoding. What is no text in it costs its own line, not the file.

bytes, decompressed → UTF-8 (what cannot be decoded stays invalid) → blocks of whole lines → Arrow, invalid lines known
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.sources.files import open_text
from ingest.sources.reader import LONGEST
from shards import UserError

UTF8 = "utf-8"
_BLOCK = 1 << 22
_MARK = codecs.BOM_UTF8
_FOREIGN = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Marks at the beginning of files that are not UTF-8, the longer ones first: one begins with another."""


def codec_of(name: str) -> str:
    """Python's name of an encoding, `UTF8` for the ways to spell that. Raises `UserError` if there is none."""
    try:
        codec = codecs.lookup(name)
        "".encode(name)
        codecs.getincrementaldecoder(name)(_UNDECODED)
    except (LookupError, UnicodeError, ValueError, TypeError):
        raise UserError(
            f"encoding {name!r} is unknown", do="Use one of Python's, such as utf-8, latin-1, cp1252, utf-16, gb18030"
        ) from None
    return UTF8 if codec.name in {"utf-8", "utf-8-sig"} else codec.name


def stray(encoding: str) -> str:
    """Why a row with bytes that are no text is none."""
    other = "; --encoding names another" if encoding == UTF8 else ""
    return f"bytes that are not {encoding.upper()} text{other}"


@dataclass(frozen=True)
class Lines:
    """Lines of a file: `texts` and their `numbers`, from 1.

    `stray` says which have bytes that are no text (U+FFFD stands for them); None if none has.
    """

    texts: pa.StringArray
    numbers: np.ndarray
    stray: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: np.ndarray) -> Lines:
        stray = None if self.stray is None else self.stray[places]
        return Lines(self.texts.take(pa.array(places)), self.numbers[places], stray)

    def without_first(self) -> Lines:
        return Lines(self.texts[1:], self.numbers[1:], None if self.stray is None else self.stray[1:])


def read_lines(path: str, encoding: str = UTF8) -> Iterator[Lines]:
    """The lines of a file, without their ends and a byte order mark, some MB at a time. A line feed alone ends a line.

    Raises `UserError` for a line longer than `LONGEST`.
    """
    number = 1
    for block in read_blocks(path, encoding, (b"\n",)):
        lines = _split(block.removesuffix(b"\n"), number)
        yield lines
        number += len(lines)


def read_blocks(path: str, encoding: str, ends: tuple[bytes, ...], size: int | None = None) -> Iterator[bytes]:
    """A file as UTF-8, cut after the last of `ends` in every `size` bytes (or few MB); the last block may have none.

    Bytes that are not of `encoding` become bytes that are not UTF-8.
    """
    with open_text(path) as raw:
        file: _Bytes = raw if encoding == UTF8 else _Recoded(raw, encoding)
        held = _begin(file, path, encoding)
        while block := file.read(size or _BLOCK):
            # A carriage return at the very end may be the first half of what ends a line.
            cut = max(block.rfind(end, 0, len(block) - (end == b"\r")) for end in ends)
            if cut < 0:
                held += block
            else:
                yield held + block[: cut + 1]
                held = block[cut + 1 :]
            if len(held) > LONGEST:
                raise UserError(f"a line is longer than {LONGEST} bytes", where=path, do="Check that this is text")
    if held:
        yield held


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Recoded:
    """A file in another encoding, read as UTF-8."""

    def __init__(self, raw: _Bytes, encoding: str) -> None:
        self._raw, self._decoder = raw, codecs.getincrementaldecoder(encoding)(_UNDECODED)

    def read(self, size: int) -> bytes:
        while True:
            block = self._raw.read(size)
            text = self._decoder.decode(block, final=not block)
            if text or not block:
                try:
                    return text.encode(UTF8, "surrogateescape")
                except UnicodeEncodeError:  # UTF-7 can spell half of a surrogate pair
                    return text.encode(UTF8, "surrogatepass")


_UNDECODED = "clipstill-undecoded"


def _undecoded(error: UnicodeError) -> tuple[str, int]:
    # What stands for a stray byte in Python's text, and becomes one in UTF-8.
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error(_UNDECODED, _undecoded)


def _begin(file: _Bytes, path: str, encoding: str) -> bytes:
    head = b""
    while len(head) < 4 and (more := file.read(4 - len(head))):
        head += more
    for mark, other in _FOREIGN.items():
        if encoding == UTF8 and head.startswith(mark):
            raise UserError(f"this is {other.upper()}, not UTF-8 text", where=path, do=f"Give --encoding {other}")
    return head.removeprefix(_MARK)


STRAY = re.compile("[\udc80-\udcff]")
"""What `decode` makes of a byte that is no text."""


def decode(block: bytes) -> tuple[str, bool]:
    """A block as text, and whether any of its bytes is none."""
    try:
        return block.decode(), False
    except UnicodeDecodeError:
        return block.decode(errors="surrogateescape"), True


def readable(text: str) -> str:
    """What `decode` gave, with U+FFFD for bytes that are no text."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _split(text: bytes, first: int) -> Lines:
    bad = None
    try:
        # Arrow splits a string in one pass over its bytes; the buffer is taken as it is, not copied.
        whole = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, len(text)], np.int32)), pa.py_buffer(text))
        whole.validate(full=True)
        texts = pc.split_pattern(whole, "\n").flatten()
    except pa.ArrowInvalid:
        decoded = list(map(decode, text.split(b"\n")))
        texts = pa.array([readable(line) for line, _ in decoded], pa.string())
        bad = np.array([is_stray for _, is_stray in decoded], np.bool_)
    return Lines(_without_returns(texts), np.arange(first, first + len(texts)), bad)


def _without_returns(lines: pa.StringArray) -> pa.StringArray:
    return pc.utf8_rtrim(lines, "\r") if pc.any(pc.ends_with(lines, "\r")).as_py() else lines
