"""Which images, or captions, are there more than once, and in more than one dataset: for more than fit in memory.

Each is known by 128 bits of its SHA-256. They lie on disk (26 bytes a sample), in parts that are sorted one by one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shards.spill import Rows, Spill

_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("dataset", "<i2"), ("shard", "<i4"), ("row", "<i4")])
_SHOWN = 3
"""So many samples are named of each group."""

Integers = npt.NDArray[np.int64]


class Group(NamedTuple):
    """`size` samples of one dataset that are equal: where the first few are, as pairs of shard's place and row."""

    size: int
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Repeated:
    """What is there more than once, in `n` datasets.

    `distinct` (n,): how many different ones each has; `repeats` (n,): samples that repeat an earlier one of their
    dataset; `groups` (n,): how many are there more than once. `largest`: of each dataset the largest groups.
    `shared` (n, n): how many different ones are in both; `shared_samples` (n, n): samples of the first dataset whose
    own is in the second. `shared_places`: of each pair of datasets, the smaller number first, where some that both
    have are in each.
    """

    distinct: Integers
    repeats: Integers
    groups: Integers
    largest: tuple[tuple[Group, ...], ...]
    shared: Integers
    shared_samples: Integers
    shared_places: dict[tuple[int, int], tuple[tuple[tuple[int, int], tuple[int, int]], ...]]


class Repeats(Spill):
    """Collects what is to be compared of each sample of some datasets; use as a context manager."""

    def __init__(self, datasets: int) -> None:
        super().__init__(_ROW)
        self._datasets = datasets

    def add(self, dataset: int, digests: bytes, shard: int, rows: Integers) -> None:
        """The samples at `rows` (n,) of a shard; `digests` are 16 bytes for each."""
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        added = np.empty(len(rows), _ROW)
        added["high"], added["low"] = halves.T
        added["dataset"], added["shard"], added["row"] = dataset, shard, rows
        self.add_rows(added)

    def found(self, most: int) -> Repeated:
        """What is repeated, with at most `most` groups of each dataset."""
        n = self._datasets
        distinct, repeats, groups = (np.zeros(n, np.int64) for _ in range(3))
        shared, shared_samples = np.zeros((n, n), np.int64), np.zeros((n, n), np.int64)
        largest: list[list[Group]] = [[] for _ in range(n)]
        pairs: dict[tuple[int, int], list[tuple[tuple[int, int], tuple[int, int]]]] = {}
        for part in self.parts():
            runs = _Runs(part)
            sizes = np.zeros((runs.values, n), np.int64)
            sizes[runs.value, runs.dataset] = runs.size
            there = (sizes > 0).astype(np.int64)
            distinct += there.sum(0)
            repeats += (sizes - there).sum(0)
            groups += (sizes > 1).sum(0)
            shared += there.T @ there
            shared_samples += sizes.T @ there
            for dataset in range(n):
                chosen = [*largest[dataset], *runs.largest(dataset, most)]
                largest[dataset] = heapq.nsmallest(most, chosen, key=lambda group: (-group.size, group.places))
            for one in range(n):
                for other in range(one + 1, n):
                    both = np.flatnonzero(there[:, one] & there[:, other])
                    found = pairs.setdefault((one, other), []) + runs.places_of_both(one, other, both)
                    pairs[one, other] = sorted(found)[:_SHOWN]
        return Repeated(
            distinct,
            repeats,
            groups,
            tuple(map(tuple, largest)),
            shared,
            shared_samples,
            {pair: tuple(found) for pair, found in pairs.items()},
        )


class _Runs:
    """Rows of one part, ordered; a run has equal rows of one dataset. `value` numbers what is equal in all datasets."""

    def __init__(self, part: Rows) -> None:
        order = np.lexsort((part["row"], part["shard"], part["dataset"], part["low"], part["high"]))
        self._rows = rows = part[order]
        new = np.ones(len(rows), bool)
        new[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
        starts = np.flatnonzero(new | np.r_[True, rows["dataset"][1:] != rows["dataset"][:-1]][: len(rows)])
        self._first = starts
        self.size = np.diff(np.r_[starts, len(rows)])
        self.dataset = rows["dataset"][starts].astype(np.int64)
        self.value = (np.cumsum(new) - 1)[starts]
        self.values = int(new.sum())

    def largest(self, dataset: int, most: int) -> list[Group]:
        own = np.flatnonzero((self.dataset == dataset) & (self.size > 1))
        rows = self._rows[self._first[own]]
        chosen = own[np.lexsort((rows["row"], rows["shard"], -self.size[own]))[:most]]
        return [Group(int(self.size[run]), self._places(run)) for run in chosen.tolist()]

    def places_of_both(self, one: int, other: int, values: Integers) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Of the first of these values, by where it is in `one`: its first sample in each."""
        runs = [self._run_of(dataset)[values] for dataset in (one, other)]
        rows = self._rows[self._first[runs[0]]]
        chosen = np.lexsort((rows["row"], rows["shard"]))[:_SHOWN]
        return [(self._places(int(runs[0][at]))[0], self._places(int(runs[1][at]))[0]) for at in chosen.tolist()]

    def _run_of(self, dataset: int) -> Integers:
        """(values,): the run of each value in a dataset, 0 where it has none."""
        found = np.zeros(self.values, np.int64)
        own = np.flatnonzero(self.dataset == dataset)
        found[self.value[own]] = own
        return found

    def _places(self, run: int) -> tuple[tuple[int, int], ...]:
        rows = self._rows[self._first[run] : self._first[run] + min(int(self.size[run]), _SHOWN)]
        return tuple(zip(rows["shard"].tolist(), rows["row"].tolist(), strict=True))
