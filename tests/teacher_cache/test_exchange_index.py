"""Keys beyond count: found where they were put, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from teacher_cache.exchange.index import Entry, IndexWriter, KeyIndex


def test_every_key_is_found_where_it_was_put(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    keys = [f"key-{number}" for number in random.permutation(5000)]
    entries = [Entry(int(file), number * 10, number) for number, file in enumerate(random.integers(0, 900, 5000))]
    with IndexWriter() as writer:
        for start in range(0, 5000, 700):
            writer.add(keys[start : start + 700], entries[start : start + 700])
        # Once more, in another file: both places are told.
        writer.add(["key-7"], [Entry(1000, 3, 4)])
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


def test_an_index_of_nothing_finds_nothing(tmp_path: Path) -> None:
    with IndexWriter() as writer:
        writer.write(tmp_path / "index")
    assert KeyIndex(tmp_path / "index").find("a") == []
