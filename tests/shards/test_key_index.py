"""Keys beyond count: found where they were put, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.key_index import Entry, IndexWriter, KeyIndex


def test_every_key_is_found_where_it_was_put(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    keys = [f"key-{number}" for number in random.permutation(5000)]
    entries = [Entry(int(file), number * 10, number) for number, file in enumerate(random.integers(0, 900, 5000))]
    with IndexWriter() as writer:
        for start in range(0, 5000, 700):
            some = entries[start : start + 700]
            writer.add(keys[start : start + 700], *np.array(some).T)
        # Once more, in another file: both places are told.
        writer.add(["key-7"], 1000, 3, 4)
        writer.write(tmp_path / "index")
    assert writer.rows == 5001
    index = KeyIndex(tmp_path / "index")
    assert {key: index.find(key)[0] for key in keys} == dict(zip(keys, entries, strict=True))
    assert index.find("key-7")[1:] == [Entry(1000, 3, 4)]
    assert index.find("key-5000") == index.find("") == []
    assert index.groups(0) == []
    places = index.groups(5001)
    assert sorted(entry for group in places for entry in group) == sorted([*entries, Entry(1000, 3, 4)])
    assert index.find("key-7") in places
    assert index.groups(40) == places[:40]
    # A fair draw: the files of a few are as wide apart as those of all.
    assert 300 < np.mean([group[0].file for group in index.groups(40)]) < 600


def test_many_keys_at_once_are_found_as_by_a_dictionary() -> None:
    drawn = np.random.default_rng(5).permutation(6000)
    expected = {f"ключ {number}": (int(number) % 3, 7 * int(number)) for number in drawn[:5000]}
    with IndexWriter() as writer:
        for start in range(0, 5000, 700):
            part = drawn[start : min(start + 700, 5000)]
            writer.add([f"ключ {number}" for number in part], part % 3, 7 * part)
        writer.add([], 0, 0)
        index = writer.index()
    # What it was written to is gone.
    asked = [f"ключ {number}" for number in range(6000)]
    files, starts = index.first(asked)
    assert files.tolist() == [expected.get(key, (-1, 0))[0] for key in asked]
    assert starts.tolist() == [expected.get(key, (-1, 0))[1] for key in asked]
    assert [len(column) for column in index.first([])] == [0, 0]
    assert index.repeated() is None


def test_of_a_key_that_was_added_twice_the_first_counts() -> None:
    with IndexWriter() as writer:
        writer.add(["a", "b"], 0, [5, 9])
        writer.add(["c", "b", ""], 1, [3, 1, 0])
        index = writer.index()
    files, starts = index.first(["b", "", "d", "a", "b"])
    assert (files.tolist(), starts.tolist()) == ([0, 1, -1, 0, 0], [9, 0, 0, 5, 9])
    assert index.repeated() == Entry(1, 1, 0)


def test_keys_that_share_half_a_hash_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = {"a": (7, 1), "b": (7, 2), "c": (7, 4), "d": (7, 3)}

    def hashes(keys: list[str]) -> tuple[np.ndarray, ...]:
        return tuple(np.array([halves[key][half] for key in keys], np.uint64) for half in range(2))

    monkeypatch.setattr("shards.key_index._hashes", hashes)
    with IndexWriter() as writer:
        writer.add(["c", "a", "b"], 0, [30, 10, 20])
        index = writer.index()
    files, starts = index.first(["a", "b", "c", "d"])
    assert (files.tolist(), starts.tolist()) == ([0, 0, 0, -1], [10, 20, 30, 0])
    assert [index.find(key) for key in "bd"] == [[Entry(0, 20, 0)], []]
    assert index.repeated() is None


def test_an_index_of_nothing_finds_nothing() -> None:
    with IndexWriter() as writer:
        index = writer.index()
    assert index.find("a") == []
    assert index.first(["a"])[0].tolist() == [-1]
    assert index.repeated() is None
