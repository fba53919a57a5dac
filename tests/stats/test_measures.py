"""Counts in flat memory against the same counts of everything at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stats.measures import KEYS, Count, Measure, Words
from stats.repeats import Repeats


def counted(values: np.ndarray, pieces: int, scale: int = 1) -> Measure:
    measure = Measure(scale)
    for rows in np.array_split(np.arange(len(values)), pieces):
        measure.add(values[rows], [f"k{row}" for row in rows.tolist()])
    return measure


@pytest.mark.parametrize("most", [20, 300, 100_000, 10**11])
def test_percentiles_are_numpys(most: int) -> None:
    values = (np.random.default_rng(most).random(5000) ** 3 * most).astype(np.int64)
    measure = counted(values, 7)
    assert (len(measure), measure.smallest, measure.largest) == (5000, values.min(), values.max())
    assert measure.mean == pytest.approx(values.mean())
    for percent in (0, 1, 5, 50, 95, 99, 100):
        exact = np.percentile(values, percent, method="inverted_cdf")
        value, keys = measure.percentile(percent)
        assert value == exact if exact < 256 or percent in {0, 100} else value == pytest.approx(exact, rel=0.008)
        assert 0 < len(keys) <= KEYS
        for key in keys:
            behind = values[int(key[1:])]
            assert behind == exact if exact < 256 else behind == pytest.approx(exact, rel=0.008)


def test_a_value_names_the_first_samples_that_have_it() -> None:
    values = np.array([5, 9, 5, 5, 5, 9])
    assert counted(values, 1).percentile(50) == (5, ["k0", "k2", "k3"])
    assert counted(values, 3).percentile(50) == (5, ["k0", "k2", "k3"])
    assert counted(values, 6).percentile(100) == (9, ["k1", "k5"])


def test_bars_are_numpys_and_a_scale_is_undone() -> None:
    values = np.random.default_rng(0).integers(1, 200, 1000)
    edges = np.arange(0.0, 21.0)
    expected = np.histogram(values / 10, edges)[0] / 1000
    np.testing.assert_allclose(counted(values, 3, scale=10).in_bars(edges), expected)
    assert counted(values, 3, scale=10).percentile(50)[0] == np.percentile(values, 50, method="inverted_cdf") / 10


def test_bars_miss_none_of_the_samples() -> None:
    """Where a bin begins below the smallest value of all."""
    values = np.full(9, 999_999)
    assert counted(values, 1).in_bars(np.array([999_999.0, 1_000_000.0])).sum() == 1


def test_words_are_counted_and_the_rarest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stats.measures._MOST_WORDS", 50)
    rng = np.random.default_rng(0)
    drawn = [f"w{int(place)}" for place in rng.zipf(1.5, 3000)]
    words = Words()
    for at in range(0, len(drawn), 100):
        piece = {word: Count(count, [f"{at}-{word}"]) for word, count in Counter(drawn[at : at + 100]).items()}
        words.add_all(piece)
    assert len(words) <= 50
    exact = Counter(drawn)
    for word, count in words.most_common(5):
        assert exact[word] - words.short <= count.samples <= exact[word]
        assert len(count.keys) <= KEYS
    assert [word for word, _ in words.most_common(2)] == [word for word, _ in exact.most_common(2)]


@pytest.mark.parametrize("at_once", [10, 1 << 16])
def test_repeats_are_those_of_a_dictionary(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("shards.spill._AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    values = [rng.integers(0, most, count) for most, count in ((40, 90), (60, 50), (10_000, 70))]
    digests = np.random.default_rng(2).bytes(16 * 10_000)
    with Repeats(3) as repeats:
        for dataset, own in enumerate(values):
            for shard, rows in enumerate(np.array_split(np.arange(len(own)), 4)):
                told = b"".join(digests[16 * value : 16 * value + 16] for value in own[rows].tolist())
                repeats.add(dataset, told, shard, np.arange(len(rows)))
        found = repeats.found(5)
    counts = [Counter(own.tolist()) for own in values]
    assert found.distinct.tolist() == [len(count) for count in counts]
    assert found.repeats.tolist() == [len(own) - len(count) for own, count in zip(values, counts, strict=True)]
    assert found.groups.tolist() == [sum(size > 1 for size in count.values()) for count in counts]
    for one in range(3):
        for other in range(3):
            assert found.shared[one, other] == len(counts[one].keys() & counts[other].keys())
            both = sum(size for value, size in counts[one].items() if value in counts[other])
            assert found.shared_samples[one, other] == both
    for dataset, own in enumerate(values):
        starts = np.cumsum([0, *map(len, np.array_split(np.arange(len(own)), 4))])
        sizes = sorted((size for size in counts[dataset].values() if size > 1), reverse=True)[:5]
        assert [group.size for group in found.largest[dataset]] == sizes
        for group in found.largest[dataset]:
            at = [int(starts[shard]) + row for shard, row in group.places]
            assert at == np.flatnonzero(own == own[at[0]])[:3].tolist()
    for (one, other), places in found.shared_places.items():
        for pair in places:
            said = []
            for dataset, (shard, row) in zip((one, other), pair, strict=True):
                said.append(int(np.array_split(values[dataset], 4)[shard][row]))
            assert said[0] == said[1]
