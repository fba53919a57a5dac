"""How often an epoch shows each sample, by what the teachers say of its image and caption.

`weight`: in proportion to the score (CLIP score: the cosine of both embeddings; below 0 it counts as 0), so that over
epochs a sample of twice the score is seen twice as often. `best-first`: the first epoch shows the best quarter of the
samples, the second the better half, the third three quarters, every one from there on all of them.

An epoch has as many samples as ever: those that are shown more often repeat in it. Everything follows from the cache,
the seed and the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from distill.data.order import shuffled
from shards import UserError, seed64
from teacher_cache.several import Cache

How = Literal["weight", "best-first"]
EPOCHS_TO_ALL = 4
"""Of `best-first`: how many there are until every sample takes part."""
_ROWS = 8192


class Repeats:
    """Of each shard's samples that take part, how often an epoch shows them: whole numbers whose sum is their number.

    `scores`: for each shard, of the rows that take part.
    """

    def __init__(self, scores: Sequence[npt.NDArray[np.float32]], how: How, seed: int) -> None:
        self._scores = np.concatenate([*scores, np.zeros(0, np.float32)]).astype(np.float64)
        self._bounds = np.cumsum([len(part) for part in scores])[:-1]
        self._how, self._seed = how, seed
        # Equal scores in the order of the dataset.
        self._best = np.argsort(-self._scores, kind="stable")
        if how == "weight" and not (self._scores > 0).any():
            raise UserError("no sample has a score above 0", where="--by-score weight", do="Check the cache")

    def __call__(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """For each shard (rows,)."""
        count = len(self._scores)
        weights = np.maximum(self._scores, 0)
        if self._how == "best-first":
            weights = np.zeros(count)
            weights[self._best[: -(-count * min(epoch + 1, EPOCHS_TO_ALL) // EPOCHS_TO_ALL)]] = 1
        # Each sample has a stretch of its weight on a line of `count` in all, in an order drawn anew, and is shown as
        # often as whole numbers from a start that is drawn too fall into it: on average exactly its weight.
        order = shuffled(count, seed64("repeats", self._seed, epoch))
        ends = np.cumsum(weights[order])
        ends *= count / ends[-1]
        ends[-1] = count
        start = seed64("repeats start", self._seed, epoch) / 2**64
        repeats = np.zeros(count, np.int64)
        repeats[order] = np.diff(np.floor(ends + start).astype(np.int64), prepend=0)
        return np.split(repeats, self._bounds)


def pair_scores(
    caches: Sequence[Cache], captions: str, rows: Sequence[npt.NDArray[np.int64]]
) -> list[npt.NDArray[np.float32]]:
    """For each shard the scores of these of its rows: cosines of view 0 and the set's caption 0, the mean of teachers.

    Raises `UserError` where a teacher embedded images or captions only.
    """
    for cache in caches:
        cache.require(captions)
    found = []
    for place, own in enumerate(rows):
        scores = np.zeros(len(own), np.float32)
        for first in range(0, len(own), _ROWS):
            part = own[first : first + _ROWS]
            places = np.stack([np.full(len(part), place), part], axis=1)
            for cache in caches:
                image = cache.image(places, np.zeros(len(part), np.int64))
                cosines = np.einsum("nd,nd->n", image, cache.text(places, 0, captions))
                scores[first : first + _ROWS] += cosines / np.float32(len(caches))
        # What is not a number is told when it comes to be trained on.
        found.append(np.nan_to_num(scores))
    return found
