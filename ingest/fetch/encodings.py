"""Bodies that came encoded, asked for or not: `Content-Encoding` undone as browsers do it, within a limit.

Not curl's own decoding, which refuses a body for any word it does not know; the web is full of `utf-8`, `binary`,
`aws-chunked` and `image/jpeg` there, in front of plain images.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import pyarrow as pa

_PIECE = 256 * 1024
_MOST = 3
"""Encodings on top of each other; nobody means more."""


class EncodingError(Exception):
    """The bytes are not what the header says."""


class Bytes(Protocol):
    """What can be read from the start again."""

    def seek(self, place: int, /) -> int: ...
    def read(self, size: int, /) -> bytes: ...


def encodings(header: str) -> list[str]:
    """The names in a `Content-Encoding` header that mean something, in the order in which they were applied."""
    words = (word.strip().removeprefix("x-") for word in re.split(r"[,\s]+", header.lower()))
    return [word for word in words if word in _DECODERS]


def decode(body: Bytes, names: list[str], write: Callable[[bytes], bool]) -> None:
    """Undo encodings, the last one first, and give `write` the result piece by piece until it says no.

    A body that does not even begin as its first encoding must is taken for plain: servers say gzip of JPEGs too.
    Raises `EncodingError` for one that breaks off or breaks down later.
    """
    if len(names) > _MOST:
        raise EncodingError
    pieces = _read(body)
    for name in reversed(names):
        pieces = _DECODERS[name](pieces)
    begun = False
    try:
        for piece in pieces:
            begun = begun or bool(piece)
            if not write(piece):
                return
    except (zlib.error, OSError, EOFError) as error:
        if begun or isinstance(error, EOFError) or "Truncated" in str(error):
            raise EncodingError from None
        for piece in _read(body):
            if not write(piece):
                return


def _read(body: Bytes) -> Iterator[bytes]:
    body.seek(0)
    while piece := body.read(_PIECE):
        yield piece


def _inflate(pieces: Iterator[bytes], windows: tuple[int, ...]) -> Iterator[bytes]:
    """Deflated bytes by one of zlib's `windows`: with which one they begin is the right one."""
    engine = None
    for piece in pieces:
        left = piece
        while left:
            if engine is None:
                engine, left, out = _first(left, windows)
            else:
                out, left = engine.decompress(left, _PIECE), engine.unconsumed_tail
            yield out
            if engine.eof:
                # What follows is another member, or padding that browsers do not look at.
                return
    if engine is None or not engine.eof:
        raise EOFError


def _first(piece: bytes, windows: tuple[int, ...]) -> tuple[zlib._Decompress, bytes, bytes]:
    for window in windows:
        engine = zlib.decompressobj(window)
        try:
            out = engine.decompress(piece, _PIECE)
        except zlib.error:
            if window == windows[-1]:
                raise
        else:
            return engine, engine.unconsumed_tail, out
    raise AssertionError


def _arrow(name: str) -> Callable[[Iterator[bytes]], Iterator[bytes]]:
    def decompressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
        source = pa.PythonFile(_Stream(pieces), mode="r")
        with pa.CompressedInputStream(source, name) as stream:
            while piece := stream.read(_PIECE):
                yield piece

    return decompressed


class _Stream:
    """Pieces as a file that Arrow reads."""

    closed = False

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def read(self, size: int) -> bytes:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = piece
        out, self._left = self._left[:size], self._left[size:]
        return out

    def close(self) -> None:
        self.closed = True


_DECODERS: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
    "gzip": lambda pieces: _inflate(pieces, (31,)),
    "deflate": lambda pieces: _inflate(pieces, (15, -15)),
    "br": _arrow("brotli"),
    "zstd": _arrow("zstd"),
}
