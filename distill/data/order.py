"""The global training order: a function of (seed, epoch) alone.

Shards are shuffled, taken in windows of a few, and the samples of a window are shuffled together: random enough to
train on, local enough that reads stay within a few files. The order does not know of ranks, workers or where a run
stopped, so a position is one integer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shards import seed64


def shuffled(count: int, seed: int) -> npt.NDArray[np.int64]:
    """A permutation of range(count), sorting by SplitMix64 hashes: the same with every numpy, unlike its generators."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.argsort(z, kind="stable")


class Order:
    """Deals the samples of a dataset in global batches, dropping what does not fill one at the end of an epoch.

    `shards`: for each, how many samples it has, or (count,) which of them take part. `window`: how many shards are
    shuffled together. `repeats`: of an epoch, for each shard how often it shows each of those that take part, as many
    in all as there are; once unless given. `samples` is how many there are in all, of how many `shards`.
    """

    def __init__(
        self,
        shards: Sequence[int | npt.NDArray[np.bool_]],
        batch_size: int,
        seed: int,
        window: int = 16,
        repeats: Callable[[int], Sequence[npt.NDArray[np.int64]]] | None = None,
    ) -> None:
        self._chosen = {place: rows for place, rows in enumerate(shards) if not isinstance(rows, int)}
        self._counts = np.array([rows if isinstance(rows, int) else int(rows.sum()) for rows in shards], np.int64)
        self.shards, self.samples = len(self._counts), int(self._counts.sum())
        self._seed, self._window, self.batch_size = seed, window, batch_size
        self.steps_per_epoch = self.samples // batch_size
        self._repeats = lru_cache(maxsize=2)(repeats) if repeats else None
        self._plan = lru_cache(maxsize=4)(self._epoch_plan)
        self._block = lru_cache(maxsize=4)(self._shuffled_block)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The global batch of `step` (counted from 0 over all epochs): (batch_size, 2) of shard place and row."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        return self.span(epoch, start, start + self.batch_size)

    def ahead(self, step: int) -> list[int]:
        """The shards that `step` and its followers read, in the order of need: those of its window and of the next."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.ahead_of(epoch, place * self.batch_size)

    def ahead_of(self, epoch: int, position: int) -> list[int]:
        """As `ahead`, from a position within an epoch."""
        shards, starts = self._plan(epoch)
        block = int(np.searchsorted(starts, position, side="right")) - 1
        found: list[int] = shards[block * self._window : (block + 2) * self._window].tolist()
        if (block + 1) * self._window >= len(shards):
            following, _ = self._plan(epoch + 1)
            found += following[: self._window].tolist()
        return list(dict.fromkeys(found))

    def span(self, epoch: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The samples at positions start..stop-1 of an epoch: (stop - start, 2) of shard place and row."""
        _, starts = self._plan(epoch)
        parts = []
        while start < stop:
            block = int(np.searchsorted(starts, start, side="right")) - 1
            samples = self._block(epoch, block)
            first = start - int(starts[block])
            part = samples[first : first + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts)

    def _epoch_plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The shuffled shards that hold anything, and the position at which each block begins."""
        counts = self._counts
        if self._repeats is not None:
            counts = np.array([int(part.sum()) for part in self._repeats(epoch)], np.int64)
        shards = shuffled(len(counts), seed64("shards", self._seed, epoch))
        shards = shards[counts[shards] > 0]
        sizes = np.add.reduceat(counts[shards], np.arange(0, len(shards), self._window))
        return shards, np.concatenate([[0], np.cumsum(sizes)])

    def _rows_of(self, shard: int, epoch: int) -> npt.NDArray[np.int64]:
        chosen = self._chosen.get(shard)
        rows = np.arange(self._counts[shard]) if chosen is None else np.flatnonzero(chosen)
        return rows if self._repeats is None else np.repeat(rows, self._repeats(epoch)[shard])

    def _shuffled_block(self, epoch: int, block: int) -> npt.NDArray[np.int64]:
        shards, _ = self._plan(epoch)
        members = shards[block * self._window : (block + 1) * self._window]
        parts = [(shard, self._rows_of(shard, epoch)) for shard in members.tolist()]
        samples = np.concatenate([np.stack([np.full(len(rows), shard), rows], axis=1) for shard, rows in parts])
        return samples[shuffled(len(samples), seed64("samples", self._seed, epoch, block))]
