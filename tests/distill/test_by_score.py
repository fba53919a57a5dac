"""Samples by the cache's scores: how often each is shown, on average exactly and in every epoch as a function of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data.by_score import Repeats, pair_scores
from distill.data.order import Order
from distill.training.run import Run
from distill.training.train import train
from shards import UserError
from tests.distill.test_train import begin_again_after, outcome

SIZES = (40, 0, 25, 35)


@pytest.fixture
def scores() -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.uniform(-0.05, 0.4, size).astype(np.float32) for size in SIZES]


def shown(order: Order, epoch: int) -> Counter[tuple[int, int]]:
    return Counter(map(tuple, order.span(epoch, 0, order.samples).tolist()))


def test_over_epochs_a_sample_is_shown_in_proportion_to_its_score(scores: list[np.ndarray]) -> None:
    """As close as whole numbers come to it in each epoch, and the mean within sampling."""
    flat = np.maximum(np.concatenate(scores).astype(np.float64), 0)
    expected = flat * len(flat) / flat.sum()
    order = Order(SIZES, 10, seed=1, repeats=Repeats(scores, "weight", 1))
    places = [(shard, row) for shard, size in enumerate(SIZES) for row in range(size)]
    counts = np.array([[found[place] for place in places] for found in (shown(order, e) for e in range(400))])
    assert (counts.sum(axis=1) == 100).all()
    assert ((counts >= np.floor(expected)) & (counts <= np.ceil(expected))).all()
    assert np.abs(counts.mean(axis=0) - expected).max() < 0.11
    assert len({tuple(row) for row in counts[:5].tolist()}) == 5


def test_the_best_come_first(scores: list[np.ndarray]) -> None:
    order = Order(SIZES, 10, seed=1, repeats=Repeats(scores, "best-first", 1))
    flat = {(shard, row): value for shard, part in enumerate(scores) for row, value in enumerate(part.tolist())}
    best = sorted(flat, key=lambda place: -flat[place])
    for epoch, wanted in enumerate((25, 50, 75, 100, 100)):
        found = shown(order, epoch)
        assert set(found) == set(best[:wanted])
        assert set(found.values()) <= {100 // wanted, -(-100 // wanted)}
        assert found.total() == 100
    again = Order(SIZES, 10, seed=1, repeats=Repeats(scores, "best-first", 1))
    assert (again.batch(27) == order.batch(27)).all()
    assert set(again.ahead(3)) <= {0, 2, 3}


def test_scores_are_the_caches_cosines_over_teachers(world: Any, rich: str, tmp_path: Path) -> None:
    run = Run(world.settings(tmp_path, cache=rich, teachers=("teach", "other"), by_score="weight", batch_size=13))
    rows = [np.arange(shard.count) for shard in run.dataset.shards]
    found = pair_scores(run.caches, "txt", rows)
    for place, part in enumerate(rows):
        for row in part.tolist():
            at, zero = np.array([[place, row]]), np.zeros(1, np.int64)
            cosines = [float(cache.image(at, zero)[0] @ cache.text(at)[0]) for cache in run.caches]
            assert found[place][row] == pytest.approx(sum(cosines) / 2, abs=1e-6)
    repeats = Repeats(found, "weight", 0)(0)
    seen = Counter(tuple(place) for step in range(2) for place in run.order.batch(step).tolist())
    assert seen == {(p, row): n for p, part in enumerate(repeats) for row, n in enumerate(part.tolist()) if n}


@pytest.mark.parametrize("how", ["weight", "best-first"])
def test_a_run_goes_on_to_the_same_bytes(
    world: Any, second: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Of two datasets; a run that is too short to come to all samples says so."""
    two: dict[str, Any] = {"shards": (world.shards, second.shards), "cache": (world.cache, second.cache)}
    settings = world.settings(tmp_path / "run", **two, by_score=how, steps=10, keep=10, batch_size=12)
    train(settings)
    assert ("best-first comes to all samples in epoch 4, and this run has 2.5" in caplog.text) == (how != "weight")
    expected = outcome(tmp_path / "run")
    begin_again_after(tmp_path / "run", 5)
    train(settings)
    assert outcome(tmp_path / "run") == expected


def test_what_has_no_scores_is_refused(world: Any, rich: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="goes by teachers' scores, and there is no cache"):
        world.settings(tmp_path, cache=(), by_score="weight")
    with pytest.raises(UserError, match="--by-score weight, --join none"):
        world.settings(tmp_path, join="none", by_score="weight")
    with pytest.raises(UserError, match="embedded captions only"):
        Run(world.settings(tmp_path, cache=rich, teachers=("texts",), text_tower="cache", by_score="weight"))
    with pytest.raises(UserError, match="no sample has a score above 0"):
        Repeats([np.array([-0.1, 0.0], np.float32)], "weight", 0)
