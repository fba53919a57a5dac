"""The order of training: every sample at most once an epoch, well mixed, a function of seed and epoch alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from distill.data.order import Order

COUNTS = [7, 0, 31, 1, 0, 12, 44, 5, 0]


def epoch_of(order: Order, epoch: int) -> npt.NDArray[np.int64]:
    """(steps, batch, 2): all batches of an epoch."""
    first = epoch * order.steps_per_epoch
    return np.stack([order.batch(first + step) for step in range(order.steps_per_epoch)])


@pytest.mark.parametrize("batch", [1, 3, 8, 99, 100])
@pytest.mark.parametrize("window", [1, 2, 16])
def test_an_epoch_is_a_permutation_cut_into_whole_batches(batch: int, window: int) -> None:
    order = Order(COUNTS, batch, seed=5, window=window)
    assert order.steps_per_epoch == 100 // batch
    for epoch in range(3):
        samples = [(int(place), int(row)) for place, row in epoch_of(order, epoch).reshape(-1, 2)]
        assert len(set(samples)) == len(samples) == order.steps_per_epoch * batch
        assert all(0 <= row < COUNTS[place] for place, row in samples)


def test_what_does_not_fill_a_batch_is_dropped_by_chance_not_by_place() -> None:
    order = Order([10] * 10, 32, seed=0, window=4)
    dropped = np.zeros((10, 10))
    for epoch in range(300):
        seen = epoch_of(order, epoch).reshape(-1, 2)
        missing = np.ones((10, 10))
        missing[seen[:, 0], seen[:, 1]] = 0
        assert missing.sum() == 4
        dropped += missing
    assert dropped.sum(axis=1).min() > 0.5 * 120
    assert dropped.sum(axis=0).max() < 1.5 * 120


def test_epochs_and_seeds_differ() -> None:
    order, other = Order(COUNTS, 10, seed=1), Order(COUNTS, 10, seed=2)
    epochs = [epoch_of(order, epoch).reshape(-1, 2) for epoch in range(4)] + [epoch_of(other, 0).reshape(-1, 2)]
    for first in range(5):
        for second in range(first):
            agree = (epochs[first] == epochs[second]).all(axis=1).mean()
            assert agree < 0.1, (first, second)


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    order = Order(COUNTS, 9, seed=3, window=2)
    straight = [order.batch(step) for step in range(60)]
    random = np.random.default_rng(0)
    for step in random.permutation(60):
        assert np.array_equal(order.batch(int(step)), straight[step])
    assert np.array_equal(Order(COUNTS, 9, seed=3, window=2).batch(57), straight[57])


def test_another_batch_size_cuts_the_same_order() -> None:
    """So the position in an epoch is a number of samples, whoever deals them."""
    small, large = Order(COUNTS, 5, seed=3, window=2), Order(COUNTS, 20, seed=3, window=2)
    assert np.array_equal(epoch_of(small, 2).reshape(-1, 2), epoch_of(large, 2).reshape(-1, 2))


def test_processes_agree() -> None:
    program = """
import json, sys
from distill.data.order import Order
order = Order([7, 0, 31, 1, 0, 12, 44, 5, 0], 7, seed=int(sys.argv[1]))
print(json.dumps([order.batch(step).tolist() for step in range(30)]))
"""
    environment = {**os.environ, "PYTHONHASHSEED": "4321"}
    done = subprocess.run(
        [sys.executable, "-c", program, "11"], env=environment, capture_output=True, text=True, check=True
    )
    order = Order(COUNTS, 7, seed=11)
    assert json.loads(done.stdout) == [order.batch(step).tolist() for step in range(30)]


def test_batches_mix_their_window_of_shards_and_the_places_in_them() -> None:
    counts, window, batch = [100] * 64, 16, 80
    order = Order(counts, batch, seed=0, window=window)
    for epoch in range(3):
        batches = epoch_of(order, epoch)
        for step, samples in enumerate(batches):
            shards, sizes = np.unique(samples[:, 0], return_counts=True)
            # 80 balls in 16 boxes; where a window ends, in the boxes of two.
            assert len(shards) >= 12, (epoch, step)
            assert sizes.max() <= 16, (epoch, step)
            assert len(np.unique(batches[max(0, step - 3) : step + 1, :, 0])) <= 2 * window, "reads are not local"
        flat = batches.reshape(-1, 2)
        assert abs(np.corrcoef(np.arange(len(flat)), flat[:, 1])[0, 1]) < 0.05, "early rows come early"
        neighbours = (flat[1:, 0] == flat[:-1, 0]).mean()
        assert 0.03 < neighbours < 0.1, "neighbours should share a shard once in 16"
        following = ((flat[1:, 0] == flat[:-1, 0]) & (flat[1:, 1] == flat[:-1, 1] + 1)).sum()
        assert following < 15, "runs of the tar's order remain"


def test_every_place_in_an_epoch_is_as_likely_for_every_sample() -> None:
    order = Order([20, 30], 50, seed=9)
    places = np.zeros((50, 400))
    for epoch in range(400):
        (samples,) = epoch_of(order, epoch)
        places[samples[:, 0] * 20 + samples[:, 1], epoch] = np.arange(50)
    # Uniform over 0..49: mean 24.5, standard deviation 14.43; 400 draws each.
    assert np.abs(places.mean(axis=1) - 24.5).max() < 4 * 14.43 / 20
    assert np.abs(places.std(axis=1) - 14.43).max() < 1.5


def test_empty_shards_take_no_place_in_a_window() -> None:
    order = Order([100] * 16 + [0] * 240, 80, seed=0, window=16)
    for samples in epoch_of(order, 0):
        assert len(np.unique(samples[:, 0])) >= 12


@pytest.mark.parametrize("window", [1, 3, 16])
def test_what_is_read_next_is_known_ahead(window: int) -> None:
    order = Order(COUNTS, 4, seed=3, window=window)
    steps = order.steps_per_epoch
    for step in range(3 * steps):
        ahead = order.ahead(step)
        assert len(set(ahead)) == len(ahead) <= 2 * window
        # Some shards hold fewer samples than a batch has; a window of one then ends within the batch.
        assert set(order.batch(step)[:1, 0].tolist()) <= set(ahead)
        if window > 1:
            assert set(order.batch(step)[:, 0].tolist()) <= set(ahead)
            assert set(order.batch(step + 1)[:, 0].tolist()) <= set(ahead)
