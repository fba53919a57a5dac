"""k-means of embeddings: planted clusters are found, the same ones whatever the threads, and as tight as another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from shards import UserError
from teacher_cache.report.clusters import clusters


def planted(count: int, k: int, width: int, spread: float, seed: int = 0) -> tuple[npt.NDArray[np.float16], np.ndarray]:
    """Unit rows (count, width) about k random directions in a cone, and which of these each was made from."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(k, width)) + 1
    of = random.integers(0, k, count)
    rows = centres[of] + spread * random.normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16), of


def tightness(rows: npt.NDArray[np.float16], named: np.ndarray) -> float:
    """The mean cosine of a row to its cluster's mean direction."""
    exact = rows.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    return sum(float(np.linalg.norm(exact[named == name].sum(axis=0))) for name in np.unique(named)) / len(rows)


def test_a_cluster_holds_one_of_the_things_that_there_are() -> None:
    rows, of = planted(6000, 12, 64, 0.5)
    found = clusters(rows, 72, seed=3)
    assert (found.shape, found.dtype) == ((6000,), np.int32)
    assert (found.min(), found.max()) == (0, 71)
    together = np.zeros((12, 72), np.int64)
    np.add.at(together, (of, found), 1)
    assert together.max(axis=0).sum() > 0.99 * len(rows)


def test_where_there_are_no_clusters_they_are_as_tight_as_scikit_learns() -> None:
    from sklearn.cluster import KMeans  # noqa: PLC0415

    rows, _ = planted(4000, 4000, 32, 0.0)
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    other = KMeans(40, n_init=1, init="random", random_state=0).fit(unit).labels_
    ours = tightness(rows, clusters(rows, 40, seed=0))
    assert ours > tightness(rows, other) - 0.003
    assert ours > tightness(rows, np.arange(4000) % 40) + 0.02


def test_each_row_is_in_the_cluster_whose_mean_is_nearest() -> None:
    rows, _ = planted(3000, 20, 48, 0.3)
    found = clusters(rows, 20, seed=1)
    exact = rows.astype(np.float64)
    means = np.stack([exact[found == name].sum(axis=0) for name in range(20)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert ((exact @ means.T).argmax(axis=1) == found).mean() > 0.99


def test_the_answer_depends_on_the_seed_and_not_on_the_threads() -> None:
    rows, _ = planted(5000, 300, 96, 1.0)
    before = torch.get_num_threads()
    answers = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            answers.append(clusters(rows, 50, seed=5))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
    assert (clusters(rows, 50, seed=6) != answers[0]).any()


def test_no_cluster_is_empty_unless_rows_are_equal() -> None:
    rows, _ = planted(1000, 20, 16, 1.0)
    rows[60:] = rows[60]  # where most centres begin, of which one has rows
    assert len(np.unique(clusters(rows, 61, seed=0))) == 61
    equal = np.repeat(np.eye(3, 16, dtype=np.float16), 50, axis=0)
    found = clusters(equal, 8, seed=0)
    assert len(np.unique(found)) == 3
    assert (found.reshape(3, 50) == found.reshape(3, 50)[:, :1]).all()


def test_a_mapped_file_does_as_well_and_every_row_may_be_its_own_cluster(tmp_path: Path) -> None:
    rows, _ = planted(40, 4, 16, 1.0)
    assert sorted(clusters(rows, 40, seed=0).tolist()) == list(range(40))
    path = tmp_path / "rows"
    rows.tofile(path)
    mapped = np.memmap(path, np.float16, "r", shape=rows.shape)
    np.testing.assert_array_equal(clusters(mapped, 5, seed=2), clusters(rows, 5, seed=2))


@pytest.mark.parametrize("k", [0, 41])
def test_as_many_clusters_as_there_can_be(k: int) -> None:
    rows, _ = planted(40, 4, 16, 0.1)
    with pytest.raises(UserError, match=f"40 rows do not make {k} clusters. Ask for 1 to 40"):
        clusters(rows, k, seed=0)
