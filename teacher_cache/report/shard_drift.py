"""Which shards are not like the others: one that was damaged, embedded by something else, or is of another kind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teacher_cache.report.scores import Scores

_FAR = 5.0
"""Robust standard deviations from the median that make a shard odd, if its own size does not explain them."""
_LEAST = 4
"""Of fewer shards none can be called odd."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """`cosine` (S,) of each shard's mean embedding to the mean over all, NaN for shards without any; `odd_cosine` and
    `odd_score` (S,) whether that, or the mean score, is unlike the other shards'.
    """

    cosine: Values
    odd_cosine: npt.NDArray[np.bool_]
    odd_score: npt.NDArray[np.bool_]

    @property
    def odd(self) -> npt.NDArray[np.bool_]:
        return self.odd_cosine | self.odd_score


def drift(scores: Scores) -> Drift:
    """Compare every shard with the whole.

    The mean of n rows of variance v = 1 - |mean|² lies about v / n (squared) off, so chance gives a cosine of about
    1 / sqrt(1 + v / (n |mean|²)): small shards may be that much off without being odd.
    """
    means, counts = scores.means.astype(np.float64), scores.counts
    whole = (means * counts[:, None]).sum(axis=0) / max(int(counts.sum()), 1)
    lengths = np.linalg.norm(means, axis=1) * np.linalg.norm(whole)
    there = (counts > 0) & (lengths > 1e-12)
    cosine = np.full(len(counts), np.nan)
    cosine[there] = np.minimum((means[there] @ whole) / lengths[there], 1)
    length = max(float(whole @ whole), 1e-12)
    by_chance = 1 / np.sqrt(1 + max(1 - length, 0) / (np.maximum(counts, 1) * length))
    off = cosine - by_chance
    low = off < np.median(off[there]) if there.any() else there
    spread = float(np.nanstd(scores.clip)) if scores.pairs.any() else 0.0
    return Drift(
        cosine=cosine,
        odd_cosine=_odd(off, 2 * (1 - by_chance)) & low,
        odd_score=_odd(scores.shard_scores, 5 * spread / np.sqrt(np.maximum(scores.pairs, 1))),
    )


def _odd(values: Values, explained: Values) -> npt.NDArray[np.bool_]:
    """(S,): further from the median than `explained` and than the others' spread (MAD) allows; NaN never is."""
    known = np.isfinite(values)
    if known.sum() < _LEAST:
        return np.zeros(len(values), np.bool_)
    off = np.abs(values - np.median(values[known]))
    usual = 1.4826 * np.median(off[known])
    return np.asarray(known & (off > _FAR * usual) & (off > explained))
