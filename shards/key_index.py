"""Places by key, for more keys than fit in memory.

Keys are hashed (BLAKE2b, 128 bits: two are never taken for one) and spilled into 256 parts by the first byte; each part
is sorted by itself. What comes of it is an Arrow file of 256 record batches with `high` and `low` (the hash's halves),
`file`, `start` and `size`, mapped into memory by whoever looks a key up: 36 bytes a key on disk, next to nothing in
memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.spill import Spill, by_part

_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("file", "<i4"), ("start", "<i8"), ("size", "<i8")])
_SCHEMA = pa.schema([(name, pa.from_numpy_dtype(_ROW[name])) for name in _ROW.names or ()])
Numbers = npt.NDArray[np.int64] | Sequence[int] | int


class Entry(NamedTuple):
    """Which file, where in it, and how many bytes. Rows have no size: a hash may stand in its place."""

    file: int
    start: int
    size: int


class IndexWriter(Spill):
    """Collects entries on disk; use as a context manager."""

    def __init__(self) -> None:
        super().__init__(_ROW)

    def add(self, keys: Sequence[str], files: Numbers, starts: Numbers, sizes: Numbers = 0) -> None:
        """An entry for each key."""
        rows = np.empty(len(keys), _ROW)
        rows["high"], rows["low"] = _hashes(keys)
        rows["file"], rows["start"], rows["size"] = files, starts, sizes
        self.add_rows(rows)

    def write(self, path: Path) -> None:
        with pa.ipc.new_file(str(path), _SCHEMA) as sink:
            for rows in self.parts():
                ordered = rows[np.lexsort((rows["start"], rows["file"], rows["low"], rows["high"]))]
                arrays = [pa.array(np.ascontiguousarray(ordered[name])) for name in _SCHEMA.names]
                sink.write_batch(pa.record_batch(arrays, schema=_SCHEMA))

    def index(self) -> KeyIndex:
        """An index that no file outlives: what it is mapped from is gone with this writer."""
        path = self.scratch / "index"
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
        for number, chosen in by_part(highs):
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
