"""Numbers by key: what a dictionary would say."""

from __future__ import annotations

import numpy as np
import pytest

from teacher_cache.key_index import KeyIndex


def test_it_says_what_a_dictionary_says() -> None:
    rng = np.random.default_rng(5)
    drawn = rng.permutation(6000).tolist()  # enough for hashes that begin or end with a zero byte
    expected = {f"ключ {number}": 7 * number for number in drawn[:5000]}
    index = KeyIndex()
    for start in range(0, 5000, 700):
        part = drawn[start : min(start + 700, 5000)]
        index.add([f"ключ {number}" for number in part], 7 * np.array(part, np.int64))
    index.add([], np.empty(0, np.int64))
    asked = [f"ключ {number}" for number in range(6000)]
    assert index.find(asked).tolist() == [expected.get(key, -1) for key in asked]
    assert index.find([]).tolist() == []
    assert len(index) == 5000
    assert index.repeated() is None


def test_of_a_key_that_was_added_twice_the_first_counts() -> None:
    index = KeyIndex()
    index.add(["a", "b"], np.array([5, 9]))
    index.add(["c", "b", ""], np.array([3, 1, 0]))
    assert index.find(["b", "", "d", "a", "b"]).tolist() == [9, 0, -1, 5, 9]
    assert index.repeated() == 1


def test_an_empty_one_knows_nothing() -> None:
    index = KeyIndex()
    assert index.find(["a", ""]).tolist() == [-1, -1]
    assert (len(index), index.repeated()) == (0, None)
    with pytest.raises(AssertionError):
        index.add(["a"], np.array([1]))
