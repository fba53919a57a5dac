"""Places by key, for more keys than fit in memory.

Keys are hashed (BLAKE2b, 128 bits: two are never taken for one) and spilled into 256 parts by the first byte; each part
is sorted by itself. What comes of it is an Arrow file of 256 record batches with `high` and `low` (the hash's halves),
`file`, `start` and `size`, mapped into memory by whoever looks a key up: 36 bytes a key on disk, next to nothing in
memory.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("file", "<i4"), ("start", "<i8"), ("size", "<i8")])
_SCHEMA = pa.schema([(name, pa.from_numpy_dtype(_ROW[name])) for name in _ROW.names or ()])
_PARTS = 256
_AT_ONCE = 1 << 16
"""Entries that are held until they are spilled: every part is opened each time."""

Numbers = npt.NDArray[np.int64] | Sequence[int] | int


class Entry(NamedTuple):
    """Which file, where in it, and how many bytes. Rows have no size: a hash may stand in its place."""

    file: int
    start: int
    size: int


class IndexWriter:
    """Collects entries on disk; use as a context manager."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="clipstill-")
        self._held: list[npt.NDArray[np.void]] = []
        self.rows = self._spilled = 0

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def _part(self, number: int) -> Path:
        return Path(self._scratch.name) / f"{number:03d}"

    def add(self, keys: Sequence[str], files: Numbers, starts: Numbers, sizes: Numbers = 0) -> None:
        """An entry for each key."""
        rows = np.empty(len(keys), _ROW)
        rows["high"], rows["low"] = _hashes(keys)
        rows["file"], rows["start"], rows["size"] = files, starts, sizes
        self._held.append(rows)
        self.rows += len(rows)
        if self.rows - self._spilled >= _AT_ONCE:
            self._spill()

    def _spill(self) -> None:
        rows = np.concatenate([np.empty(0, _ROW), *self._held])
        self._held, self._spilled = [], self.rows
        for number, chosen in _by_part(rows["high"]):
            with self._part(number).open("ab") as file:
                rows[chosen].tofile(file)

    def write(self, path: Path) -> None:
        self._spill()
        with pa.ipc.new_file(str(path), _SCHEMA) as sink:
            for number in range(_PARTS):
                part = self._part(number)
                rows = np.fromfile(part, _ROW) if part.exists() else np.empty(0, _ROW)
                rows = rows[np.lexsort((rows["start"], rows["file"], rows["low"], rows["high"]))]
                arrays = [pa.array(np.ascontiguousarray(rows[name])) for name in _SCHEMA.names]
                sink.write_batch(pa.record_batch(arrays, schema=_SCHEMA))

    def index(self) -> KeyIndex:
        """An index that no file outlives: what it is mapped from is gone with this writer."""
        path = Path(self._scratch.name) / "index"
        self.write(path)
        return KeyIndex(path)


class KeyIndex:
    """Looks keys up in a file of `IndexWriter`."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._parts: list[dict[str, npt.NDArray[Any]]] = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            self._parts.append({name: batch[name].to_numpy() for name in _SCHEMA.names})

    def find(self, key: str) -> list[Entry]:
        """Every entry of the key, in the order of files; empty if there is none."""
        (high,), (low,) = _hashes([key])
        part = self._parts[int(high) >> 56]
        first = int(np.searchsorted(part["high"], high))
        last = int(np.searchsorted(part["high"], high, side="right"))
        return [_entry(part, row) for row in range(first, last) if part["low"][row] == low]

    def first(self, keys: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(n,) file and (n,) start of each key's first entry; the file is -1 where the key is unknown."""
        files, starts = np.full(len(keys), -1, np.int64), np.zeros(len(keys), np.int64)
        highs, lows = _hashes(keys)
        for number, chosen in _by_part(highs):
            part = self._parts[number]
            if not len(part["high"]):
                continue
            high, low, last = highs[chosen], lows[chosen], len(part["high"]) - 1
            at = np.minimum(np.searchsorted(part["high"], high), last)
            # Two keys may share a half.
            while (before := (part["high"][at] == high) & (part["low"][at] < low) & (at < last)).any():
                at += before
            there = (part["high"][at] == high) & (part["low"][at] == low)
            files[chosen[there]], starts[chosen[there]] = part["file"][at[there]], part["start"][at[there]]
        return files, starts

    def repeated(self) -> Entry | None:
        """The second entry of a key that has several, None if there is none."""
        for part in self._parts:
            high, low = part["high"], part["low"]
            again = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
            if again.size:
                return _entry(part, int(again[0]) + 1)
        return None

    def groups(self, most: int) -> list[list[Entry]]:
        """The entries of the first keys, key by key, at most `most` in all: in the order of hashes, so a fair draw."""
        rows = ((part, row) for part in self._parts for row in range(len(part["high"])))
        found: dict[tuple[int, int], list[Entry]] = {}
        for part, row in itertools.islice(rows, most):
            found.setdefault((int(part["high"][row]), int(part["low"][row])), []).append(_entry(part, row))
        return list(found.values())


def _entry(part: dict[str, npt.NDArray[Any]], row: int) -> Entry:
    return Entry(int(part["file"][row]), int(part["start"][row]), int(part["size"][row]))


def _hashes(keys: Sequence[str]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """(n,) the upper and (n,) the lower half of each key's hash."""
    digests = b"".join([blake2b(key.encode(), digest_size=16).digest() for key in keys])
    halves = np.frombuffer(digests, ">u8").astype(np.uint64)
    return halves[::2], halves[1::2]


def _by_part(highs: npt.NDArray[np.uint64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """The parts that some keys are in, with their places among these keys, in order."""
    numbers = highs >> np.uint64(56)
    order = np.argsort(numbers, kind="stable")
    parts, starts = np.unique(numbers[order], return_index=True)
    return zip(parts.tolist(), np.split(order, starts[1:]), strict=False)
