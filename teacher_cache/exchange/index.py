"""Where the bytes of each key are, for more keys than fit in memory.

Keys are hashed (BLAKE2b, 128 bits) and spilled into 256 parts by the first byte; each part is sorted by itself. What
comes of it is an Arrow file of 256 record batches with `high` and `low` (the hash's halves), `file`, `start` and
`size`, mapped into memory by whoever looks a key up: 36 bytes a key on disk, next to nothing in memory.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("file", "<i4"), ("start", "<i8"), ("size", "<i8")])
_SCHEMA = pa.schema([(name, pa.from_numpy_dtype(_ROW[name])) for name in _ROW.names or ()])
_PARTS = 256


class Entry(NamedTuple):
    """Which file, where in it, and how many bytes. Rows of an array have no size: a hash may stand in its place."""

    file: int
    start: int
    size: int


class IndexWriter:
    """Collects entries on disk; use as a context manager."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="clipstill-")
        self.rows = 0

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def _part(self, number: int) -> Path:
        return Path(self._scratch.name) / f"{number:03d}"

    def add(self, keys: Sequence[str], entries: Sequence[Entry]) -> None:
        """Some thousands at a time: each call opens every part once."""
        rows = np.array([(*_hash(key), *entry) for key, entry in zip(keys, entries, strict=True)], _ROW)
        numbers = rows["high"] >> np.uint64(56)
        for number in np.unique(numbers).tolist():
            with self._part(number).open("ab") as file:
                rows[numbers == number].tofile(file)
        self.rows += len(rows)

    def write(self, path: Path) -> None:
        with pa.ipc.new_file(str(path), _SCHEMA) as sink:
            for number in range(_PARTS):
                part = self._part(number)
                rows = np.fromfile(part, _ROW) if part.exists() else np.empty(0, _ROW)
                rows = rows[np.lexsort((rows["start"], rows["file"], rows["low"], rows["high"]))]
                arrays = [pa.array(np.ascontiguousarray(rows[name])) for name in _SCHEMA.names]
                sink.write_batch(pa.record_batch(arrays, schema=_SCHEMA))


class KeyIndex:
    """Looks keys up in a file of `IndexWriter`."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._parts: list[dict[str, npt.NDArray[np.int64]]] = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            self._parts.append({name: batch[name].to_numpy() for name in _SCHEMA.names})

    def find(self, key: str) -> list[Entry]:
        """Every entry of the key, in the order of files; empty if there is none."""
        high, low = _hash(key)
        part = self._parts[high >> 56]
        first = int(np.searchsorted(part["high"], np.uint64(high)))
        last = int(np.searchsorted(part["high"], np.uint64(high), side="right"))
        rows = (row for row in range(first, last) if int(part["low"][row]) == low)
        return [_entry(part, row) for row in rows]

    def groups(self, most: int) -> list[list[Entry]]:
        """The entries of the first keys, key by key, at most `most` in all: in the order of hashes, so a fair draw."""
        rows = ((part, row) for part in self._parts for row in range(len(part["high"])))
        found: dict[tuple[int, int], list[Entry]] = {}
        for part, row in itertools.islice(rows, most):
            found.setdefault((int(part["high"][row]), int(part["low"][row])), []).append(_entry(part, row))
        return list(found.values())


def _entry(part: dict[str, npt.NDArray[np.int64]], row: int) -> Entry:
    return Entry(int(part["file"][row]), int(part["start"][row]), int(part["size"][row]))


def _hash(key: str) -> tuple[int, int]:
    digest = blake2b(key.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
