"""The search for near duplicates against every cosine computed by numpy, and against pairs that were planted."""

from __future__ import annotations

import numpy as np
import pytest

from teacher_cache.report.duplicates import groups, nearest

THRESHOLD = 0.95


def cone(count: int, width: int, seed: int = 0) -> np.ndarray:
    """(count, width) float32 of norm 1 whose mean has norm 0.7, as CLIP's."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, width)) / np.sqrt(width)
    rows[:, 0] += 1
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def plant(rows: np.ndarray, cosine: float, pairs: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Make `pairs` rows stand at `cosine` to other rows; both their numbers."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(rows))[: 2 * pairs]
    first, second = chosen[:pairs], chosen[pairs:]
    for one, other in zip(first, second, strict=True):
        aside = random.standard_normal(rows.shape[1])
        aside -= aside @ rows[one] * rows[one]
        rows[other] = cosine * rows[one] + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)
    return first, second


def test_comparing_every_pair_finds_what_numpy_finds() -> None:
    rows = cone(5000, 16).astype(np.float16)
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    most = cosines.max(axis=1)
    found = nearest(rows, THRESHOLD)
    assert found.exact
    assert 50 < (most > THRESHOLD).sum() < 4900
    clear = np.abs(most - THRESHOLD) > 1e-5
    np.testing.assert_array_equal((found.index >= 0)[clear], (most > THRESHOLD)[clear])
    has = found.index >= 0
    np.testing.assert_allclose(found.cosine[has], most[has], atol=1e-6)
    np.testing.assert_allclose(cosines[has, found.index[has]], most[has], atol=1e-6)
    assert np.isnan(found.cosine[~has]).all()


@pytest.mark.parametrize("cosine", [0.955, 0.99])
def test_hashing_finds_planted_pairs_about_as_often_as_it_says(cosine: float) -> None:
    rows = cone(20_000, 64)
    first, second = plant(rows, cosine, 600)
    found = nearest(rows.astype(np.float16), THRESHOLD, exact_up_to=0)
    assert not found.exact
    assert 0.97 < found.recall <= 1
    seen = (found.index[first] == second) & (found.index[second] == first)
    # Three standard deviations of 600 draws below what is claimed of pairs at the threshold.
    assert seen.mean() > found.recall - 3 * np.sqrt(0.015 / 600)
    if cosine > 0.98:
        assert seen.mean() > 0.995
    np.testing.assert_allclose(found.cosine[first][seen], cosine, atol=1e-3)
    strangers = np.setdiff1d(np.arange(len(rows)), np.concatenate([first, second]))
    assert (found.index[strangers] < 0).all(), "64 dimensions hold no such pairs by chance"


def test_equal_rows_of_more_than_a_window_are_one_group() -> None:
    rows = cone(2000, 32).astype(np.float16)
    rows[500:1300] = rows[500]
    for exact_up_to in (0, 10_000):
        found = nearest(rows, THRESHOLD, exact_up_to=exact_up_to)
        np.testing.assert_allclose(found.cosine[500:1300], 1, atol=1e-5)
        assert np.isin(found.index[500:1300], np.arange(500, 1300)).all()
        assert (found.index[500:1300] != np.arange(500, 1300)).all()
    named = groups(found.index)
    assert len(np.unique(named[500:1300])) == 1


def test_groups_are_what_nearest_neighbours_connect() -> None:
    #                 0   1  2  3   4  5  6  7   8
    index = np.array([-1, 2, 1, 2, -1, 6, 7, 5, 3], np.int32)
    named = groups(index)
    sets = {tuple(np.flatnonzero(named == name).tolist()) for name in named}
    assert sets == {(0,), (1, 2, 3, 8), (4,), (5, 6, 7)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_rows(count: int) -> None:
    rows = np.ones((count, 4), np.float16) / np.float16(2)
    found = nearest(rows, THRESHOLD)
    assert found.index.tolist() == [[], [-1], [1, 0]][count]
    assert len(groups(found.index)) == count
