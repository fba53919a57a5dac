"""Several datasets in one order: each seen as often as its weight says, whatever the batch size."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from distill.data.mixture import Mixture
from distill.data.order import Order

SHARDS = ([7, 5, 9], [40], [3, 0, 2])


def mixture(batch: int, weights: list[float], seed: int = 3) -> Mixture:
    return Mixture([Order(shards, batch, seed, window=2) for shards in SHARDS], weights, seed)


def seen(mixed: Mixture, steps: range) -> Counter[tuple[int, int]]:
    return Counter(tuple(place) for step in steps for place in mixed.batch(step).tolist())


@pytest.mark.parametrize("batch", [1, 2, 11, 22])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [2.0, 0.5, 1.0], [0.25, 1.0, 4.0]])
def test_each_dataset_is_seen_as_often_as_its_weight_says(batch: int, weights: list[float]) -> None:
    mixed = mixture(batch, weights)
    sizes = [sum(shards) for shards in SHARDS]
    shares = [round(weight * size) for weight, size in zip(weights, sizes, strict=True)]
    assert mixed.shares == shares
    assert mixed.steps_per_epoch == sum(shares) // batch
    found = seen(mixed, range(4 * mixed.steps_per_epoch))
    firsts, counts = [0, 3, 4, 7], Counter(place for place, _ in found.elements())
    for number, share in enumerate(shares):
        total = sum(counts[place] for place in range(firsts[number], firsts[number + 1]))
        # What fills no batch is dropped of each in proportion, and less than one sample of each is rounded.
        expected = Fraction(4 * mixed.steps_per_epoch * batch * share, sum(shares))
        assert abs(total - expected) < 4 * len(SHARDS)


def test_every_batch_has_its_share_of_each() -> None:
    mixed = mixture(22, [1.0, 1.0, 1.0])
    for step in range(2 * mixed.steps_per_epoch):
        owners = Counter(0 if place < 3 else 1 if place < 4 else 2 for place, _ in mixed.batch(step).tolist())
        for number, size in enumerate((21, 40, 5)):
            assert abs(owners[number] - 22 * size / 66) <= 1


def test_a_sample_is_not_seen_twice_before_all_of_its_dataset_were() -> None:
    # 33 batches of 2 take all 66 samples.
    mixed = mixture(2, [1.0, 1.0, 1.0])
    for epoch in range(3):
        found = seen(mixed, range(epoch * 33, (epoch + 1) * 33))
        assert len(found) == 66
        assert set(found.values()) == {1}


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    one, other = mixture(11, [2.0, 0.5, 1.0]), mixture(11, [2.0, 0.5, 1.0])
    steps = range(3 * one.steps_per_epoch)
    forwards = [one.batch(step) for step in steps]
    for step in reversed(steps):
        assert np.array_equal(other.batch(step), forwards[step])
    assert not np.array_equal(mixture(11, [2.0, 0.5, 1.0], seed=4).batch(0), forwards[0])


def test_neighbours_in_a_batch_are_of_every_dataset() -> None:
    mixed = mixture(22, [1.0, 1.0, 1.0])
    halves = [mixed.batch(step)[:11, 0] for step in range(40)]
    assert all(len(set(np.digitize(half, [3, 4]).tolist())) > 1 for half in halves)


def test_what_is_read_next_is_known_ahead() -> None:
    mixed = mixture(11, [2.0, 0.5, 1.0])
    for step in range(2 * mixed.steps_per_epoch):
        assert set(mixed.batch(step)[:, 0].tolist()) <= set(mixed.ahead(step))
