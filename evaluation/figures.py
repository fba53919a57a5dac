"""A figure that can be measured again on any resample of the images: intervals, and differences between models.

Whole images are drawn with replacement, with all their captions, since captions of one image are not independent
(Efron & Tibshirani 1993, the bootstrap by clusters). Two models see the same resamples, so what both find hard cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float64]
"""(n,) of each image how often it was drawn."""

RESAMPLES = 1000
_LEVEL = 95.0


@dataclass(frozen=True)
class Figure:
    """`value` in percent; `again(weights)` is the figure of a resample, None of a figure that is not resampled."""

    value: float
    again: Callable[[Weights], float] | None = None


def share(hits: npt.ArrayLike, image_of: npt.ArrayLike | None, images: int) -> Figure:
    """The share of queries (m,) that are hits, in percent; `image_of` (m,) says which image each is of."""
    of = np.arange(images) if image_of is None else np.asarray(image_of)
    counts = np.bincount(of, minlength=images).astype(np.float64)
    right = np.bincount(of, weights=np.asarray(hits, np.float64), minlength=images)

    def again(weights: Weights) -> float:
        asked = float(weights @ counts)
        return 100.0 * float(weights @ right) / asked if asked else float("nan")

    return Figure(again(np.ones(images)), again)


def share_by_group(hits: npt.ArrayLike, groups: npt.ArrayLike, *, worst: bool = False) -> Figure:
    """The mean, or the lowest, of the shares within each group that is there, in percent; both (n,)."""
    right = np.asarray(hits, np.float64)
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    numbers = numbers.reshape(-1)

    def again(weights: Weights) -> float:
        drawn = np.bincount(numbers, weights=weights)
        found = np.bincount(numbers, weights=weights * right)[drawn > 0] / drawn[drawn > 0]
        return 100.0 * float(found.min() if worst else found.mean())

    return Figure(again(np.ones(len(right))), again)


def f1_macro(labels: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64], classes: int) -> Figure:
    """The mean over the classes that occur as labels of the harmonic mean of precision and recall, in percent."""
    hits = (labels == chosen).astype(np.float64)

    def again(weights: Weights) -> float:
        wanted = np.bincount(labels, weights=weights, minlength=classes)
        said = np.bincount(chosen, weights=weights, minlength=classes)
        right = np.bincount(labels, weights=weights * hits, minlength=classes)
        there = wanted > 0
        return 100.0 * float((2 * right[there] / (wanted + said)[there]).mean())

    return Figure(again(np.ones(len(labels))), again)


def mean_average_precision(logits: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.bool_]) -> Figure:
    """The mean over classes of average precision, in percent: (n, C) both. A class on no image counts as 0.

    Of equal logits the earlier image comes first. Average precision is the mean of the precisions at each image that
    has the class, as CLIP_benchmark has it.
    """
    order = np.argsort(-logits, axis=0, kind="stable")
    truth = np.take_along_axis(labels, order, axis=0).astype(np.float64)

    def again(weights: Weights) -> float:
        drawn = weights[order]
        hits, seen = np.cumsum(drawn * truth, axis=0), np.cumsum(drawn, axis=0)
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        wanted = hits[-1]
        sums = (precision * drawn * truth).sum(axis=0)
        return 100.0 * float((sums / np.maximum(wanted, 1)).mean())

    return Figure(again(np.ones(len(labels))), again)


def mean_of(figures: Sequence[Figure]) -> Figure:
    """The mean of several figures of the same images."""
    parts = [figure.again for figure in figures if figure.again is not None]

    def again(weights: Weights) -> float:
        return float(np.mean([part(weights) for part in parts]))

    value = float(np.mean([figure.value for figure in figures]))
    return Figure(value, again if len(parts) == len(figures) else None)


def intervals(figures: Mapping[str, Figure], images: int) -> dict[str, list[float]]:
    """Of each figure that is resampled the limits within which 95 % of resamples lie."""
    known = {name: figure.again for name, figure in figures.items() if figure.again is not None}
    found: dict[str, list[float]] = {name: [] for name in known}
    for weights in _resamples(images):
        for name, again in known.items():
            found[name].append(again(weights))
    return {name: _limits(values) for name, values in found.items()}


def differences(ours: Mapping[str, Figure], theirs: Mapping[str, Figure], images: int) -> dict[str, dict[str, float]]:
    """Of each figure that both have: ours less theirs, its 95 % limits, and `p`, the share of resamples in which the
    difference is nought or points the other way, twice (a two-sided test).
    """
    pairs = {
        name: (figure.again, theirs[name].again)
        for name, figure in ours.items()
        if name in theirs and figure.again is not None and theirs[name].again is not None
    }
    drawn: dict[str, list[float]] = {name: [] for name in pairs}
    for weights in _resamples(images):
        for name, (one, other) in pairs.items():
            assert one is not None
            assert other is not None
            drawn[name].append(one(weights) - other(weights))
    told = {}
    for name, values in drawn.items():
        low, high = _limits(values)
        found = ours[name].value - theirs[name].value
        array = np.asarray(values)
        against = float(min(np.mean(array <= 0), np.mean(array >= 0)))
        told[name] = {"difference": found, "low": low, "high": high, "p": min(1.0, 2 * against)}
    return told


def spread(values: Sequence[float]) -> dict[str, float]:
    """Of several seeds: the mean, the standard deviation (of a sample, n - 1), the lowest and the highest."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        "low": float(np.min(values)),
        "high": float(np.max(values)),
    }


def _resamples(images: int) -> Any:
    random = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield np.bincount(random.integers(images, size=images), minlength=images).astype(np.float64)


def _limits(values: Sequence[float]) -> list[float]:
    edge = (100.0 - _LEVEL) / 2
    return [float(limit) for limit in np.nanpercentile(values, [edge, 100.0 - edge])]
