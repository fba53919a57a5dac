"""Files read where they lie, a range at a time: every range whole, and asked for again where it did not come so."""

from __future__ import annotations

import io
from typing import IO, Any

from fsspec.implementations.local import LocalFileSystem

from shards.outages import ride_out
from shards.stores import ShortReadError, code_of, located

_BLOCK = 8 << 20
"""Bytes of one request to a store, in reading on."""


def short_read(url: str, got: int, expected: int, start: int = 0) -> ShortReadError:
    """What to raise where another number of bytes came than there are from `start` on."""
    where = f" from byte {start:,} on" if start else ""
    return ShortReadError(f"{url}: {got:,} bytes came{where}, {expected:,} are there")


def read_file(url: str) -> bytes:
    """All bytes of a file. Raises `FileNotFoundError`, or `ShortReadError` where fewer come again and again."""
    fs, path = located(url)

    def read() -> bytes:
        with fs.open(path, "rb", cache_type="none") as file:
            data = bytes(file.read())
            if file.size not in {None, len(data)}:
                raise short_read(url, len(data), file.size)
            return data

    while True:
        try:
            return ride_out(url, read)
        except OSError as error:
            # Size and bytes are of one version: where it was replaced in between, the newer one is read.
            if type(error).__name__ != "FileExpired":
                raise


def read_start(url: str, size: int) -> bytes:
    """The first bytes of a file, so many at most, by one request; whether they are all that there is, who asks sees."""
    fs, path = located(url)
    try:
        return bytes(ride_out(url, lambda: fs.cat_file(path, start=0, end=size)))
    except OSError as error:
        # Of an empty file there is no such range.
        if code_of(error) != "InvalidRange":
            raise
        return b""


def read_range(url: str, start: int, size: int) -> bytes:
    """So many bytes of a file from `start` on. Raises `ShortReadError` where fewer come again and again."""
    # Of nothing, a store may send everything.
    if size == 0:
        return b""
    fs, path = located(url)
    return ride_out(url, lambda: _range(fs, path, url, start, size))


def _range(fs: Any, path: str, url: str, start: int, size: int) -> bytes:
    data = bytes(fs.cat_file(path, start=start, end=start + size))
    if len(data) != size:
        raise short_read(url, len(data), size, start)
    return data


def open_file(url: str) -> io.BufferedReader:
    """A file for reading, wherever it lies: of a store range by range, or where it has no ranges in one stream."""
    fs, path = located(url)
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb")
    file: Any = ride_out(url, lambda: fs.open(path, "rb", block_size=_BLOCK, cache_type="none"))
    size = getattr(file, "size", None)
    if size is None or not file.seekable():
        stream: io.BufferedReader = file
        return stream
    return io.BufferedReader(_Ranges(url, file, int(size)), _BLOCK)


class _Ranges(io.RawIOBase):
    """A file of fsspec's without a cache, which asks a store for what is read; of another version it refuses to."""

    def __init__(self, url: str, file: IO[bytes], size: int) -> None:
        super().__init__()
        self._url, self._file, self._size, self._at = url, file, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._at))
        if size:
            buffer[:size] = ride_out(self._url, lambda: self._read(size))
            self._at += size
        return size

    def _read(self, size: int) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(size)
        if len(data) != size:
            raise short_read(self._url, len(data), size, self._at)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()
