"""Which URLs an earlier part of the plan has: an index on disk that grows with the plan, in flat memory.

Each part adds a run: its URLs' hashes, sorted, 16 bytes each. Four neighbouring runs of one size are merged into one of
four times the size, so there are few to look into however long the list. Which runs there are depends on the number of
parts alone: an index that was killed anywhere reaches the same files.

A hash has 80 bits: of two billion URLs, some pair is taken for equal with a probability of two in a million.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from shards import Folder

_FAN = 4
_QUERIES = 1 << 13
"""Looked up at a time, so that of a large run only so many pages are in memory."""
_MERGED = 1 << 18
"""Entries merged at a time."""
_ROW_BITS = np.uint64(48)
_ROW = np.uint64((1 << 48) - 1)


@dataclass(frozen=True)
class Hashes:
    """80 bits of each URL: `keys`, the first 64, and `tags`, the other 16 above 48 zeros; both uint64."""

    keys: np.ndarray
    tags: np.ndarray

    @staticmethod
    def of(names: Sequence[bytes]) -> Hashes:
        digests = b"".join([blake2b(name, digest_size=16).digest() for name in names])
        words = np.frombuffer(digests, "<u8").reshape(-1, 2)
        return Hashes(words[:, 0].copy(), words[:, 1] >> _ROW_BITS << _ROW_BITS)

    def __getitem__(self, places: Any) -> Hashes:
        return Hashes(self.keys[places], self.tags[places])

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def joined(several: Sequence[Hashes]) -> Hashes:
        return Hashes(np.concatenate([one.keys for one in several]), np.concatenate([one.tags for one in several]))

    def firsts(self) -> np.ndarray:
        """For each, the place of the first that is equal to it; int64."""
        order = np.argsort(self.keys, kind="stable")
        keys = self.keys[order]
        same = keys[1:] == keys[:-1]
        first = np.arange(len(keys))
        # Nearly all are alone: only those that are not are looked at closely.
        alike = np.zeros(len(keys), np.bool_)
        alike[1:] |= same
        alike[:-1] |= same
        some = order[alike]
        some = some[np.lexsort((some, self.tags[some], self.keys[some]))]
        repeats = np.zeros(len(some), np.bool_)
        repeats[1:] = (self.keys[some[1:]] == self.keys[some[:-1]]) & (self.tags[some[1:]] == self.tags[some[:-1]])
        heads = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(some))))
        first[some] = some[heads]
        return first


@dataclass(frozen=True, order=True)
class _Run:
    """The entries of the parts from `begin` to before `end`."""

    begin: int
    end: int

    @property
    def name(self) -> str:
        return f"{self.begin:06d}-{self.end:06d}"

    @staticmethod
    def parse(name: str) -> _Run | None:
        begin, _, end = name.partition("-")
        return _Run(int(begin), int(end)) if begin.isdigit() and end.isdigit() else None


class _Mapped:
    """A run's file: all keys in order, then what belongs to each, its tag and row."""

    def __init__(self, folder: Folder, run: _Run) -> None:
        with (folder.path / run.name).open("rb") as file:
            size = file.seek(0, 2)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
        if self._map is not None:
            self._map.madvise(mmap.MADV_RANDOM)
        values = np.empty(0, "<u8") if self._map is None else np.frombuffer(self._map, "<u8")
        self.keys, self.values = values[: len(values) // 2], values[len(values) // 2 :]

    def forget(self) -> None:
        """Let the pages that were looked at go."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return len(self.keys)


class Seen:
    """The index of a plan's first `parts` parts in a local folder; `whole` tells whether all of them are there.

    Runs of later parts, and those that a larger one has made superfluous, are removed.
    """

    def __init__(self, folder: Folder, parts: int) -> None:
        self.folder = folder
        runs = {run for name in folder.names() if (run := _Run.parse(name)) is not None}
        kept: list[_Run] = []
        for run in sorted(runs, key=lambda run: (run.begin, -run.end)):
            if run.end <= parts and run.begin == (kept[-1].end if kept else 0):
                kept.append(run)
        self._runs = kept
        self.whole = (kept[-1].end if kept else 0) == parts
        for run in runs.difference(kept):
            folder.delete(run.name)

    def clear(self) -> None:
        """Begin anew, with no parts."""
        for name in self.folder.names():
            self.folder.delete(name)
        self._runs = []
        self.whole = True

    @property
    def parts(self) -> int:
        return self._runs[-1].end if self._runs else 0

    def find(self, wanted: Hashes, before: int) -> np.ndarray:
        """The row that has each hash, int64, -1 where none before the row `before` has it."""
        found = np.full(len(wanted), -1, np.int64)
        order = np.argsort(wanted.keys)
        for run in self._runs:
            mapped = _Mapped(self.folder, run)
            for start in range(0, len(order) if len(mapped) else 0, _QUERIES):
                places = order[start : start + _QUERIES]
                rows = _look_up(mapped, wanted[places])
                hits = (rows >= 0) & (rows < before)
                found[places[hits]] = rows[hits]
                mapped.forget()
        return found

    def add(self, part: int, hashes: Hashes, rows: np.ndarray) -> None:
        """Add the run of the next part: each hash with its row, none of them twice or there already."""
        assert part == self.parts
        order = np.argsort(hashes.keys)
        run = _Run(part, part + 1)
        with self.folder.staged(run.name) as path, path.open("wb") as file:
            file.write(hashes.keys[order].tobytes())
            file.write((hashes.tags | rows.astype(np.uint64))[order].tobytes())
        self._runs.append(run)

    def merge(self) -> None:
        """Merge what is to be merged. Nothing is lost if it is never called, or does not come to its end."""
        for merged, runs in self._due():
            _merge(self.folder, merged, runs)
            place = self._runs.index(runs[0])
            self._runs[place : place + len(runs)] = [merged]
            for run in runs:
                self.folder.delete(run.name)

    def _due(self) -> Iterator[tuple[_Run, list[_Run]]]:
        size = _FAN
        while size <= self.parts:
            for begin in range(0, self.parts - size + 1, size):
                inside = [run for run in self._runs if begin <= run.begin and run.end <= begin + size]
                if len(inside) > 1:
                    yield _Run(begin, begin + size), inside
            size *= _FAN


def _look_up(run: _Mapped, wanted: Hashes) -> np.ndarray:
    rows = np.full(len(wanted), -1, np.int64)
    at = np.searchsorted(run.keys, wanted.keys)
    asking = np.arange(len(wanted))
    while True:
        asking = asking[at[asking] < len(run)]
        asking = asking[run.keys[at[asking]] == wanted.keys[asking]]
        if not len(asking):
            return rows
        values = run.values[at[asking]]
        equal = (values & ~_ROW) == wanted.tags[asking]
        rows[asking[equal]] = (values[equal] & _ROW).astype(np.int64)
        # Of another tag: the next entry may have the same key.
        asking = asking[~equal]
        at[asking] += 1


def _merge(folder: Folder, merged: _Run, runs: list[_Run]) -> None:
    mapped = [_Mapped(folder, run) for run in runs]
    total = sum(map(len, mapped))
    slices = total // _MERGED + 1
    # Hashes are spread evenly, so equal stretches of them hold about as many entries.
    edges = [(number << 64) // slices for number in range(1, slices)]
    cuts = [[0, *np.searchsorted(one.keys, np.array(edges, np.uint64)).tolist(), len(one)] for one in mapped]
    with folder.staged(merged.name) as path, path.open("wb") as keys_file, path.open("r+b") as values_file:
        values_file.seek(total * 8)
        for number in range(slices):
            parts = [slice(cut[number], cut[number + 1]) for cut in cuts]
            keys = np.concatenate([one.keys[part] for one, part in zip(mapped, parts, strict=True)])
            values = np.concatenate([one.values[part] for one, part in zip(mapped, parts, strict=True)])
            order = np.argsort(keys, kind="stable")
            keys_file.write(keys[order].tobytes())
            values_file.write(values[order].tobytes())
            for one in mapped:
                one.forget()
