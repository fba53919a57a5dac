"""Splitting, and writing datasets anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from shards import Dataset, InProcess, UserError, verify_dataset
from shards.selection import FilterSettings, materialize, select, split


def told(dataset: Dataset) -> dict[str, tuple[bytes, str, dict[str, Any]]]:
    return {
        shard.keys[row]: (shard.image_bytes(row), shard.caption(row), shard.meta(row))
        for shard in dataset.shards
        for row in range(shard.count)
    }


def test_parts_are_disjoint_and_depend_on_the_key_alone(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", (90, 0, 110))
    made = split(str(data.folder), {"train": 0.8, "val": 0.1}, str(tmp_path / "parts"), seed=3)
    parts = [set(told(Dataset.open(one.url))) for one in made]
    assert not parts[0] & parts[1]
    assert [one.samples for one in made] == [len(part) for part in parts]
    # 200 draws: four deviations of a binomial on either side.
    assert 137 <= len(parts[0]) <= 183
    assert 3 <= len(parts[1]) <= 37
    # Fewer of the same samples, cut otherwise: each is in the part in which it was.
    materialize([str(data.folder)], str(tmp_path / "anew"), InProcess(), shard_size=33)
    again = split(str(tmp_path / "anew"), {"train": 0.8, "val": 0.1}, str(tmp_path / "others"), seed=3)
    assert [set(told(Dataset.open(one.url))) for one in again] == parts
    with pytest.raises(UserError, match=r"the parts are train=0\.8, val=0\.3"):
        split(str(data.folder), {"train": 0.8, "val": 0.3}, str(tmp_path / "more"))


def test_what_is_written_anew_is_what_there_was(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "one", (5, 0, 7), name="one")
    two = make_dataset(tmp_path / "two", (4, 3), name="two", seed=5)
    select(FilterSettings(shards=str(one.folder), out=str(tmp_path / "few"), sample="6"))
    few = Dataset.open(str(tmp_path / "few"))
    urls = [str(few.folder), str(two.folder)]
    done = materialize(urls, str(tmp_path / "both"), InProcess(), shard_size=4)
    both = Dataset.open(str(tmp_path / "both"))
    assert [shard.count for shard in both.shards] == [4, 4, 4, 1]
    assert list(told(both).items()) == [*told(few).items(), *told(two).items()]
    assert done.samples == 13
    assert verify_dataset(str(tmp_path / "both")).problems == ()
    # A second time nothing is made; a shard whose record went is made again, with the same bytes.
    tar = (tmp_path / "both" / "00002.tar").read_bytes()
    (record,) = (tmp_path / "both" / "_records").glob("00002.*")
    record.unlink()
    (tmp_path / "both" / "00002.tar").unlink()
    done = materialize(urls, str(tmp_path / "both"), InProcess(), shard_size=4)
    assert (done.finished, done.skipped) == (1, 3)
    assert (tmp_path / "both" / "00002.tar").read_bytes() == tar
    with pytest.raises(UserError, match="there is a dataset of another origin"):
        materialize(urls[:1], str(tmp_path / "both"), InProcess(), shard_size=4)
    with pytest.raises(UserError, match="cannot be written over itself"):
        materialize(urls[:1], urls[0], InProcess())


def test_keys_that_two_datasets_have(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "one", (5,), name="one", keys="same")
    two = make_dataset(tmp_path / "two", (4,), name="two", keys="same", seed=5)
    urls = [str(one.folder), str(two.folder)]
    with pytest.raises(UserError, match=r"'same-00000000\d' is a sample's of .*one and of .*two \(4 such.*--name-keys"):
        materialize(urls, str(tmp_path / "both"), InProcess())
    assert not (tmp_path / "both").exists()
    assert main(["shards", "materialize", *urls, "--name-keys", "--in-process", "--out", str(tmp_path / "both")]) == 0
    found = told(Dataset.open(str(tmp_path / "both")))
    assert list(found) == [f"one-same-{n:09d}" for n in range(5)] + [f"two-same-{n:09d}" for n in range(4)]
    assert all(meta["key"] == key for key, (_, _, meta) in found.items())
    assert verify_dataset(str(tmp_path / "both")).problems == ()


def test_the_commands(make_dataset: Callable[..., Dataset], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = make_dataset(tmp_path / "data", (20, 20))
    line = ["shards", "split", str(data.folder), "--part", "a=0.5", "--part", "b=0.5", "--out", str(tmp_path / "parts")]
    assert main(line) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[0].startswith(f"{tmp_path}/parts/a: ")
    assert "left out: in another part" in out[1]
    assert (
        len(told(Dataset.open(str(tmp_path / "parts" / "a"))) | told(Dataset.open(str(tmp_path / "parts" / "b")))) == 40
    )
    assert main([*line[:3], "--part", "a", "--out", str(tmp_path / "x")]) == 2
    assert "the part 'a' is not understood" in capfd.readouterr().err
    # A selection of a selection, described.
    again = str(tmp_path / "again")
    assert main(["shards", "filter", str(tmp_path / "parts" / "a"), "--sample", "50%", "--out", again]) == 0
    key = next(iter(told(Dataset.open(again))))
    capfd.readouterr()
    assert main(["shards", "cat", again, key]) == 0
    assert json.loads(capfd.readouterr().out)["tar"] == f"{tmp_path}/data/0000{int(key[-2:]) // 20}.tar"
