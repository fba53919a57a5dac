"""The nearest other row of every row, where it is nearer than a threshold.

    few rows    every pair, in blocks
    many        an LSH forest (Bawa, Condie, Ganesan: LSH Forest, WWW 2005) over random hyperplanes (Charikar, STOC
                2002): a table sorts the rows by the signs of 32 projections, which puts rows of a small angle near each
                other, and all pairs within windows of 256 rows are compared exactly. Tables are added until nearly
                every one of a thousand probes, made at the very threshold, stands in a window with its original.

The hyperplanes go through the mean of the rows: embeddings of CLIP lie in a narrow cone, which most hyperplanes through
the origin do not cut. Beside the rows themselves, which may be a mapped file, 32 B a row are held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teacher_cache.dtypes import load

EXACT = 30_000
"""Up to so many rows every pair is compared."""
_BITS = 32
_WINDOW, _TOGETHER = 256, 32
_PROBES = 1000
_ENOUGH, _TABLES = 0.99, 32
"""Tables are added until this share of the probes was found, or there are so many."""
BLOCK = 4096

Rows = npt.NDArray[np.float16]
"""(n, D) of unit norm before rounding."""
Unit = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """For each of n rows: `index` (n,) int32 of the nearest other row, -1 if none is nearer than the threshold;
    `cosine` (n,) float32 to it. Nothing was missed if `exact`; else each pair at the threshold was found with
    probability `recall`, in `tables` tables.
    """

    index: npt.NDArray[np.int32]
    cosine: Unit
    exact: bool
    recall: float
    tables: int


class _Nearest:
    """The best seen so far; the threshold stands for none. Of equals the one with the lowest index stays."""

    def __init__(self, count: int, threshold: float) -> None:
        self.index = np.full(count, -1, np.int32)
        self.cosine = np.full(count, threshold, np.float32)

    def offer(self, rows: Places, others: Places, cosines: Unit) -> None:
        """Compare all pairs of some sets: `cosines` (sets, rows, others); `rows` and `others` ascend in each set."""
        best = cosines.argmax(axis=2)
        value = np.take_along_axis(cosines, best[:, :, None], axis=2)[:, :, 0]
        better = value > self.cosine[rows]
        self.index[rows[better]] = np.take_along_axis(others, best, axis=1)[better]
        self.cosine[rows[better]] = value[better]


def work(count: int) -> int:
    """How many rows `nearest` will compare at most, a row once in every table."""
    return count if count <= EXACT else count * _TABLES


def nearest(
    rows: Rows, threshold: float, *, exact_up_to: int = EXACT, advance: Callable[[int], None] = lambda _: None
) -> Neighbours:
    """The nearest other row of each; every row must be usable: finite, and not zero. Equal rows give equal answers.

    Cosines are those of the float16 rows, computed in float32. `advance` hears how many more rows were compared.
    """
    found = _Nearest(len(rows), threshold)
    exact = len(rows) <= exact_up_to
    recall, tables = (1.0, 0) if exact else _by_tables(rows, found, threshold, advance)
    if exact:
        _every_pair(rows, found, advance)
    found.cosine[found.index < 0] = np.nan
    return Neighbours(found.index, np.minimum(found.cosine, np.float32(1)), exact, recall, tables)


def _every_pair(rows: Rows, found: _Nearest, advance: Callable[[int], None]) -> None:
    unit = load(rows, "float16")
    for start in range(0, len(unit), BLOCK):
        some = np.arange(start, min(start + BLOCK, len(unit)))[None]
        for other in range(start, len(unit), BLOCK):
            others = np.arange(other, min(other + BLOCK, len(unit)))[None]
            cosines = product(unit[some], unit[others].swapaxes(1, 2))
            if other == start:
                np.fill_diagonal(cosines[0], -2)
            else:
                found.offer(others, some, np.ascontiguousarray(cosines.swapaxes(1, 2)))
            found.offer(some, others, cosines)
        advance(some.size)


def _windows(rows: Rows, windows: Places, found: _Nearest) -> None:
    """Every pair within each window: `windows` (sets, rows), ascending."""
    unit = load(rows[windows.reshape(-1)], "float16").reshape(*windows.shape, -1)
    cosines = product(unit, unit.swapaxes(1, 2))
    within = np.arange(windows.shape[1])
    cosines[:, within, within] = -2
    found.offer(windows, windows, cosines)


def product(left: Unit, right: Unit) -> Unit:
    # One library's threads for everything: those of another would spin while these work.
    import torch  # noqa: PLC0415 - only when rows are compared

    product: Unit = (torch.from_numpy(left) @ torch.from_numpy(right)).numpy()
    return product


def _by_tables(rows: Rows, found: _Nearest, threshold: float, advance: Callable[[int], None]) -> tuple[float, int]:
    """The share of the probes that were found, and in how many tables."""
    random = np.random.default_rng(0)
    mean = np.mean([load(rows[at : at + BLOCK], "float16").mean(axis=0) for at in range(0, len(rows), BLOCK)], axis=0)
    origins = np.sort(random.choice(len(rows), min(_PROBES, len(rows)), replace=False))
    probes = _at_cosine(load(rows[origins], "float16"), threshold, random)
    seen = np.zeros(len(origins), np.bool_)
    table = 0
    while table < _TABLES and seen.mean() < _ENOUGH:
        table += 1
        planes = random.standard_normal((rows.shape[1], _BITS), np.float32)
        codes = np.empty(len(rows), np.uint32)
        for start in range(0, len(rows), BLOCK):
            codes[start : start + BLOCK] = _codes(load(rows[start : start + BLOCK], "float16"), mean, planes)
        order = np.argsort(codes, kind="stable")
        seen |= _same_window(codes, order, origins, _codes(probes, mean, planes))
        whole = len(order) // _WINDOW * _WINDOW
        windows = np.sort(order[:whole].reshape(-1, _WINDOW), axis=1)
        for start in range(0, len(windows), _TOGETHER):
            _windows(rows, windows[start : start + _TOGETHER], found)
        _windows(rows, np.sort(order[whole:])[None], found)
        advance(len(rows))
    return float(seen.mean()), table


def _codes(unit: Unit, mean: Unit, planes: Unit) -> npt.NDArray[np.uint32]:
    """(n,): on which side of each hyperplane a row lies, the first plane in the highest bit."""
    bits = np.packbits(product(unit - mean, planes) > 0, axis=1)
    return np.ascontiguousarray(bits).view(">u4")[:, 0].astype(np.uint32)


def _at_cosine(unit: Unit, cosine: float, random: np.random.Generator) -> Unit:
    """For each row another of that cosine to it, in a random direction."""
    aside = random.standard_normal(unit.shape, np.float32)
    aside -= (aside * unit).sum(axis=1, keepdims=True) * unit
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    turned: Unit = np.float32(cosine) * unit + np.float32(np.sqrt(1 - cosine**2)) * aside
    return turned


def _same_window(
    codes: npt.NDArray[np.uint32],
    order: Places,
    origins: Places,
    probes: npt.NDArray[np.uint32],
) -> npt.NDArray[np.bool_]:
    """Which probes would have stood in the window of the row that they were made from."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    in_order = codes[order]
    first, last = np.searchsorted(in_order, probes, "left"), np.searchsorted(in_order, probes, "right")
    window = place[origins] // _WINDOW
    return np.asarray((first // _WINDOW <= window) & (window <= last // _WINDOW))


def groups(index: npt.NDArray[np.int32]) -> Places:
    """(n,) the group of each row, named by one of its rows: rows that nearest neighbours lead to from each other.

    Rows without a neighbour are groups of their own.
    """
    step = np.where(index < 0, np.arange(len(index)), index).astype(np.int64)
    ahead = step
    for _ in range(max(len(index), 2).bit_length()):
        ahead = ahead[ahead]
    # Every path ends in a circle, of two rows or, among equals, of more; its lowest row names the group.
    lowest = np.arange(len(index))
    for _ in range(max(len(index), 2).bit_length()):
        lowest, step = np.minimum(lowest, lowest[step]), step[step]
    named: Places = lowest[ahead]
    return named
