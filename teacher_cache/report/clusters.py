"""Clusters of a teacher's embeddings, by which a dataset can be balanced: k-means by cosine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from shards import UserError
from teacher_cache.dtypes import load
from teacher_cache.report.duplicates import Places, Rows, Unit, product

_ROUNDS, _EACH = 20, 256
"""Centres are moved so often at most, by so many rows for each of them: more move them less than another seed does."""
_COSINES = 1 << 24
"""How many are computed at once."""


def clusters(rows: Rows, k: int, seed: int) -> npt.NDArray[np.int32]:
    """(n,) the cluster of each of n rows, 0 to k - 1: the centre of the highest cosine to it.

    `rows` (n, D) may be a mapped file; every row must be usable: finite, and not zero. Centres begin as random rows and
    become the mean directions of their clusters (Lloyd's rounds). One that no row is nearest to becomes the row that is
    farthest from its own, so clusters are empty only where rows are equal. Equal rows, k and seed give equal answers.
    Holds the centres, 64 MB of cosines, and 16 B a row. Raises `UserError` if there are fewer rows than clusters.
    """
    if not 0 < k <= len(rows):
        raise UserError(f"{len(rows)} rows do not make {k} clusters", do=f"Ask for 1 to {len(rows)}")
    random = np.random.default_rng(seed)
    some = np.sort(random.choice(len(rows), min(len(rows), k * _EACH), replace=False))
    centres = load(rows[np.sort(random.choice(len(rows), k, replace=False))], "float16")
    before = np.full(len(some), -1, np.int32)
    for _ in range(_ROUNDS):
        nearest, centres = _round(rows, some, centres)
        if (nearest == before).all():
            break
        before = nearest
    found = np.empty(len(rows), np.int32)
    for places, _, cosines in _blocks(rows, np.arange(len(rows)), centres):
        found[places] = cosines.argmax(axis=1)
    return found


def _round(rows: Rows, some: Places, centres: Unit) -> tuple[npt.NDArray[np.int32], Unit]:
    """To which of the centres each of some rows is nearest, and the centres that follow from that."""
    from scipy.sparse import csr_array  # noqa: PLC0415 - only when there is something to cluster

    nearest, highest = np.empty(len(some), np.int32), np.empty(len(some), np.float32)
    sums, at = np.zeros_like(centres), 0
    for places, unit, cosines in _blocks(rows, some, centres):
        own = slice(at, at := at + len(places))
        nearest[own], highest[own] = cosines.argmax(axis=1), cosines.max(axis=1)
        ones = np.ones(len(places), np.float32)
        sums += csr_array((ones, (nearest[own], np.arange(len(places)))), shape=(len(centres), len(places))) @ unit
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    moved: Unit = np.divide(sums, norms, out=centres.copy(), where=norms > 0)
    empty = np.flatnonzero(np.bincount(nearest, minlength=len(centres)) == 0)
    farthest = np.argsort(highest, kind="stable")[: len(empty)]
    moved[empty[: len(farthest)]] = load(rows[some[farthest]], "float16")
    return nearest, moved


def _blocks(rows: Rows, places: Places, centres: Unit) -> Iterator[tuple[Places, Unit, Unit]]:
    """Some of the places, their rows (b, D), and these rows' cosines to the centres (b, k)."""
    size = max(1, _COSINES // len(centres))
    for start in range(0, len(places), size):
        block = places[start : start + size]
        unit = load(rows[block], "float16")
        yield block, unit, product(unit, centres.T)
