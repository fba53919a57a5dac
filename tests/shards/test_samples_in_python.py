"""A dataset in a notebook: its samples in order, by key and by place, with columns beside them, and written again."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from shards import Dataset, InProcess, UserError, verify_dataset, write_dataset
from shards.adopt import adopt, find_tars
from shards.adopt.settings import AdoptSettings
from shards.sample import _MOST_OPEN
from shards.shard import Shard

ROOT = Path(__file__).parents[2]
COUNT = 11


def picture(number: int, **options: Any) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8 + number, 3), np.uint8)
    Image.fromarray(pixels).save(sink, "JPEG", **options)
    return sink.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    given = [
        (f"k{number}", picture(number), [f"caption {number}", f"other {number}"], {"score": number / 2, "note": "own"})
        for number in range(COUNT)
    ]
    return write_dataset(tmp_path / "set", given, name="own", shard_size=4)


def test_every_way_to_a_sample_gives_the_same(dataset: Dataset) -> None:
    ordered = list(dataset)
    assert [sample.key for sample in ordered] == [f"k{number}" for number in range(COUNT)]
    for number, sample in enumerate(ordered):
        for same in (sample, dataset[f"k{number}"], dataset.at(number), dataset.at(number - COUNT)):
            assert same.key == f"k{number}"
            assert same.image_bytes == picture(number)
            assert same.image.size == (8 + number, 9)
            assert same.caption == f"caption {number}"
            assert same.captions == (f"caption {number}", f"other {number}")
            assert same.meta["score"] == number / 2
    assert "k3" in dataset
    assert "k11" not in dataset
    assert 3 not in dataset


def test_a_caption_that_was_given_twice_is_there_twice(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "set", [("a", picture(0), ["same", "same"], {})], name="own")
    assert dataset["a"].captions == ("same", "same")


def test_what_is_not_there_is_said(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="no sample 'k11'; the first of 11 is 'k0'"):
        dataset["k11"]
    for place in (COUNT, -COUNT - 1):
        with pytest.raises(UserError, match=f"no sample at {place}: there are 11"):
            dataset.at(place)


def test_keys_are_read_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are looked up: an index of each shard for the first one, then that of its own alone."""
    opened = Dataset.open(dataset.folder.url)
    mapped: list[str] = []
    original = Shard._map

    def counted(shard: Shard, suffix: str) -> Any:
        mapped.append(f"{shard.id}{suffix}")
        return original(shard, suffix)

    monkeypatch.setattr(Shard, "_map", counted)
    assert opened["k1"].key == "k1"
    assert sorted(mapped) == ["0.index.arrow", "0.index.arrow", "1.index.arrow", "2.index.arrow"]
    for number in range(COUNT):
        assert f"k{number}" in opened
        assert opened[f"k{number}"].key == f"k{number}"
    assert len(mapped) == 6


def test_samples_that_are_kept_hold_no_files(tmp_path: Path) -> None:
    """A list of samples of more shards than stay open: all of them can be read, and few are mapped."""
    count = _MOST_OPEN + 6
    dataset = write_dataset(
        tmp_path / "set", ((f"k{n}", picture(n % 3), "", {}) for n in range(count)), name="own", shard_size=1
    )
    kept = list(dataset)
    assert [sample.image_bytes for sample in kept] == [picture(n % 3) for n in range(count)]
    assert sum("_tar" in shard.__dict__ for shard in dataset.shards) == _MOST_OPEN


def test_a_dataset_and_its_samples_cross_processes(dataset: Dataset) -> None:
    assert dataset["k5"].key == "k5"
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy["k5"].image_bytes == picture(5)
    assert pickle.loads(pickle.dumps(dataset["k5"])).caption == "caption 5"


def test_pictures_are_upright_and_damaged_ones_are_named(tmp_path: Path, dataset: Dataset) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = write_dataset(tmp_path / "turned", [("t", picture(2, exif=exif), "", {})], name="t")
    assert turned.at(0).image.size == (9, 10)
    shard = dataset.shards[0]
    (offset, size), *_ = shard.places(1)
    with (Path(dataset.folder.url) / "00000.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    with pytest.raises(UserError, match="the image of k1 does not decode"):
        assert dataset["k1"].image


@pytest.mark.parametrize("kind", ["path", "arrow", "pandas", "indexed"])
def test_columns_beside_a_dataset(tmp_path: Path, dataset: Dataset, kind: str) -> None:
    frame = pd.DataFrame({"key": ["k7", "k2", "unknown"], "note": ["seven", "two", "x"], "clip": [0.7, 0.2, 0.0]})
    frame.to_parquet(tmp_path / "t.parquet")
    given = {
        "path": tmp_path / "t.parquet",
        "arrow": pa.Table.from_pandas(frame),
        "pandas": frame,
        "indexed": frame.set_index("key"),
    }
    joined = dataset.with_columns(given[kind])
    assert (len(joined), joined.name) == (COUNT, "own")
    assert [sample.meta["note"] for sample in joined] == [{2: "two", 7: "seven"}.get(n, "own") for n in range(COUNT)]
    assert [sample.meta["clip"] for sample in joined] == [{2: 0.2, 7: 0.7}.get(n) for n in range(COUNT)]
    assert joined["k7"].meta["clip"] == 0.7
    assert joined.at(2).meta == {**dataset.at(2).meta, "note": "two", "clip": 0.2}
    assert "clip" not in dataset["k7"].meta


def test_captions_beside_a_dataset(dataset: Dataset) -> None:
    one = dataset.with_columns(pa.table({"key": ["k1"], "caption": ["new"]}))
    assert (one["k1"].caption, one["k1"].captions) == ("new", ("new", "other 1"))
    assert (one["k2"].caption, one["k2"].captions) == ("caption 2", ("caption 2", "other 2"))
    several = dataset.with_columns(pa.table({"key": ["k1"], "captions": [["a", " ", "b"]]}))
    assert (several["k1"].caption, several["k1"].captions) == ("a", ("a", "b"))
    both = several.with_columns(pa.table({"key": ["k1"], "caption": ["first"]}))
    assert both["k1"].captions == ("first", "a", "b")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"id": ["k1"], "caption": ["a"]}), "it has no column 'key'; it has id, caption"),
        (pa.table({"key": ["k1", "k1"], "a": [1, 2]}), "the key 'k1' stands there twice"),
        (pa.table({"key": ["x"], "a": [1]}), "no key of the table is one of the dataset's"),
        (pa.table({"key": ["k1"]}), "it has no column beside `key`"),
        (pa.table({"key": [["k1"]], "a": [1]}), "its keys are no text"),
        ("nowhere.parquet", "not readable as Parquet"),
        ([1], "a list is no table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(dataset: Dataset, table: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        dataset.with_columns(table)


def test_a_loop_writes_a_dataset(tmp_path: Path, dataset: Dataset) -> None:
    joined = dataset.with_columns(pa.table({"key": ["k1", "k3"], "captions": [["a", "b"], ["c"]], "clip": [0.5, None]}))
    chosen = write_dataset(tmp_path / "new", (sample for sample in joined if sample.meta["score"] < 2), name="few")
    assert verify_dataset(chosen.folder.url).problems == ()
    assert [sample.key for sample in chosen] == ["k0", "k1", "k2", "k3"]
    assert [sample.image_bytes for sample in chosen] == [picture(n) for n in range(4)]
    expected = [("caption 0", "other 0"), ("a", "b"), ("caption 2", "other 2"), ("c",)]
    assert [sample.captions for sample in chosen] == expected
    assert [sample.meta["clip"] for sample in chosen] == [None, 0.5, None, None]
    assert [json.loads(sample.meta["captions"]) for sample in chosen] == [list(texts[1:]) for texts in expected]


def test_an_adopted_dataset_is_one_like_any_other(tmp_path: Path) -> None:
    """Tars of somebody else, whose metadata may be absent or have every caption in a list."""
    members: list[tuple[str, bytes]] = []
    for number, fields in enumerate([None, {"captions": ["said", "too"]}, {"captions": ["more"]}]):
        members += [(f"{number}.jpg", picture(number)), (f"{number}.txt", b"said")]
        members += [] if fields is None else [(f"{number}.json", json.dumps(fields).encode())]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    settings = AdoptSettings(patterns=(str(tmp_path / "t.tar"),), out=str(tmp_path / "set"))
    adopt(settings, find_tars(settings.patterns), InProcess())
    dataset = Dataset.open(tmp_path / "set")
    assert [sample.captions for sample in dataset] == [("said",), ("said", "too"), ("said", "more")]
    assert dataset["0"].meta == {"key": "0"}
    assert dataset["2"].image_bytes == picture(2)


def test_datasets_put_together(tmp_path: Path, dataset: Dataset) -> None:
    other = write_dataset(tmp_path / "b", [("k1", picture(1), "x", {}), ("z", picture(2), "y", {})], name="b")
    both = Dataset.together([dataset, other])
    assert [sample.caption for sample in both][-2:] == ["x", "y"]
    assert both["z"].caption == "y"
    with pytest.raises(UserError, match="2 samples have the key 'k1'"):
        both["k1"]


def test_datasets_put_together_keep_their_columns(tmp_path: Path) -> None:
    """A table stands beside its own dataset alone, though another has the same keys; one beside both beside both."""
    one, other = (
        write_dataset(tmp_path / name, [(key, picture(1), name, {}) for key in ("k", name)], name=name)
        for name in ("one", "other")
    )
    scored = one.with_columns(pa.table({"key": ["k", "one"], "score": [1, 2], "caption": ["said", None]}))
    both = Dataset.together([other, scored, other.with_columns(pa.table({"key": ["k"], "rank": [7]}))])
    told = [{name: sample.meta.get(name, "-") for name in ("score", "rank")} for sample in both]
    assert told == [
        *({"score": "-", "rank": "-"}, {"score": "-", "rank": "-"}),
        *({"score": 1, "rank": "-"}, {"score": 2, "rank": "-"}),
        *({"score": "-", "rank": 7}, {"score": "-", "rank": None}),
    ]
    assert [sample.caption for sample in both][2] == "said"
    assert both["one"].meta["score"] == both.at(3).meta["score"] == 2
    marked = both.with_columns(pa.table({"key": ["k", "one"], "mark": ["m", "n"]}))
    assert [sample.meta["mark"] for sample in marked] == ["m", None, "m", "n", "m", None]
    assert marked["one"].meta["score"] == 2


def test_the_documented_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, *_ = (ROOT / "docs" / "library.md").read_text().split("```python\n")[1:]
    given = [(f"cc3m-00000000{n}", picture(n), "a dog" if n == 4 else "a cat", {}) for n in range(6)]
    write_dataset(tmp_path / "data" / "cc3m", given, name="cc3m")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.partition("```")[0], names)
    assert names["sample"].key == "cc3m-000000003"
    assert [sample.key for sample in Dataset.open("data/few")] == ["cc3m-000000003"]
