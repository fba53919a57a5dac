"""Selecting against a plain oracle: what is kept, why each other sample is not, and that nothing else has changed."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipstill.main import main
from shards import Dataset, UserError, verify_dataset
from shards.samples import write_shards
from shards.selection import FilterSettings, select

HOSTS = ("a.example", "b.example", "c.example")


def picture(seed: int, width: int, height: int) -> bytes:
    """Smooth, so that a near copy stays near."""
    drawn = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(drawn).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 samples in shards of 11, 0, 17 and 12; the picture of every tenth is that of the sample three before it."""
    folder = tmp_path_factory.mktemp("whole") / "data"
    draw = random.Random(4)

    def samples(first: int, count: int) -> Iterator[tuple[str, bytes, str, dict[str, Any]]]:
        for number in range(first, first + count):
            side = draw.randrange(30, 90)
            seed = number - 3 if number % 10 == 9 else number
            image = picture(seed, 48, 40 + seed)
            caption = " ".join(["word"] * draw.randrange(1, 6)) if number % 7 else ""
            uid = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
            fields = {"width": side, "height": 60, "host": HOSTS[number % 3], "uid": uid}
            fields["score"] = None if number % 5 == 0 else round(draw.random(), 3)
            yield f"s{number:03d}", image, caption, fields

    return write_shards(folder, [samples(0, 11), [], samples(11, 17), samples(28, 12)], name="whole")


def rows_of(dataset: Dataset) -> list[dict[str, Any]]:
    return [
        {**shard.meta(row), "caption": shard.caption(row), "image": shard.image_bytes(row), "key": shard.keys[row]}
        for shard in dataset.shards
        for row in range(shard.count)
    ]


def keys_of(dataset: Dataset) -> list[str]:
    return [key for shard in dataset.shards for key in shard.keys]


def reasons_of(dataset: Dataset) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for shard in dataset.shards:
        table = pq.read_table(dataset.folder.path / f"{shard.id:05d}.parquet")
        found |= dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))
    return found


CONDITIONS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "width >= 50": lambda row: row["width"] >= 50,
    "short_side > 45": lambda row: min(row["width"], row["height"]) > 45,
    "aspect < 1.5": lambda row: max(row["width"], row["height"]) / min(row["width"], row["height"]) < 1.5,
    "caption_words >= 3": lambda row: len(row["caption"].split()) >= 3,
    "caption_chars < 20": lambda row: len(row["caption"]) < 20,
    "caption != ''": lambda row: row["caption"] != "",
    "host == b.example": lambda row: row["host"] == "b.example",
    "score > 0.4": lambda row: row["score"] is not None and row["score"] > 0.4,
    "bytes > 900": lambda row: len(row["image"]) > 900,
}


@pytest.mark.parametrize("seed", range(12))
def test_rules_keep_what_a_plain_loop_keeps(whole: Dataset, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    conditions = draw.sample(list(CONDITIONS), draw.randrange(0, 3))
    best, exact = draw.choice([None, 0.5, 7]), draw.random() < 0.5
    expected: dict[str, str | None] = {}
    kept = []
    for row in rows_of(whole):
        failed = next((text for text in conditions if not CONDITIONS[text](row)), None)
        expected[row["key"]] = failed
        kept += [row] if failed is None else []
    if exact:
        seen = set[bytes]()
        for row in list(kept):
            if row["image"] in seen:
                expected[row["key"]] = "a copy of an earlier image"
                kept.remove(row)
            seen.add(row["image"])
    if best is not None:
        most = round(best * len(kept)) if best < 1 else best
        ranked = sorted((row for row in kept if row["score"] is not None), key=lambda row: -row["score"])[:most]
        for row in kept:
            if row not in ranked:
                expected[row["key"]] = "not among the best by score"
        kept = [row for row in kept if row in ranked]
    settings = FilterSettings(
        shards=str(whole.folder),
        out=str(tmp_path / "kept"),
        where=tuple(conditions),
        unique="exact" if exact else None,
        best=None if best is None else f"score={best:.0%}" if best < 1 else f"score={best}",
    )
    if not kept:
        with pytest.raises(UserError, match=r"nothing is left of 40 samples \("):
            select(settings)
        return
    selected = select(settings)
    dataset = Dataset.open(str(tmp_path / "kept"))
    assert rows_of(dataset) == kept
    assert reasons_of(dataset) == expected
    assert (selected.samples, selected.rows) == (len(kept), 40)
    assert sum(selected.reasons.values()) == 40 - len(kept)
    assert not list((tmp_path / "kept").glob("*.tar"))
    report = verify_dataset(str(tmp_path / "kept"))
    assert report.problems == ()
    assert (report.rows, report.samples) == (40, len(kept))
    assert select(settings) == selected


def test_a_table_brings_columns_by_key(whole: Dataset, tmp_path: Path) -> None:
    keys = keys_of(whole)
    random.Random(1).shuffle(keys)
    pq.write_table(pa.table({"key": keys[:30], "clip_score": np.arange(30) / 100}), tmp_path / "scores.parquet")
    settings = FilterSettings(
        shards=str(whole.folder),
        out=str(tmp_path / "top"),
        tables=(str(tmp_path / "scores.parquet"),),
        best="clip_score=5",
    )
    select(settings)
    assert set(keys_of(Dataset.open(str(tmp_path / "top")))) == set(keys[25:30])


def test_so_many_of_each_value_at_most_and_so_many_in_all(whole: Dataset, tmp_path: Path) -> None:
    host = {row["key"]: row["host"] for row in rows_of(whole)}
    for seed in (0, 1):
        out = str(tmp_path / f"per-{seed}")
        select(FilterSettings(shards=str(whole.folder), out=out, per="host=4", sample="10", seed=seed))
        kept = keys_of(Dataset.open(out))
        assert len(kept) == 10
        assert all([host[key] for key in kept].count(name) <= 4 for name in HOSTS)
    one, other = (keys_of(Dataset.open(str(tmp_path / f"per-{seed}"))) for seed in (0, 1))
    assert one != other


def test_near_copies_and_an_evaluations_images_go(whole: Dataset, tmp_path: Path) -> None:
    def again() -> Iterator[tuple[str, bytes, str, dict[str, Any]]]:
        for number, row in enumerate(rows_of(whole)[:2]):
            with Image.open(io.BytesIO(row["image"])) as image:
                out = io.BytesIO()
                image.resize((64, 64)).save(out, "JPEG", quality=60)
            yield f"e{number}", out.getvalue(), "again", {}

    write_shards(tmp_path / "val", [again()], name="val")
    select(FilterSettings(shards=str(whole.folder), out=str(tmp_path / "apart"), unlike=(str(tmp_path / "val"),)))
    assert keys_of(Dataset.open(str(tmp_path / "apart"))) == keys_of(whole)[2:]
    select(FilterSettings(shards=str(whole.folder), out=str(tmp_path / "once"), unique="near"))
    gone = [f"s{number:03d}" for number in (9, 19, 29, 39)]
    assert [key for key in keys_of(whole) if key not in keys_of(Dataset.open(str(tmp_path / "once")))] == gone


def test_near_embeddings_are_those_of_a_reports_table(whole: Dataset, tmp_path: Path) -> None:
    keys = keys_of(whole)
    nearest: list[str | None] = [None] * 40
    nearest[4], nearest[5], nearest[9] = keys[5], keys[9], keys[5]
    nearest[30] = keys[2]
    table = pa.table({"key": keys, "nearest_key": nearest, "nearest_cosine": [0.99] * 40})
    pq.write_table(table, tmp_path / "scores.parquet")
    settings = FilterSettings(
        shards=str(whole.folder),
        out=str(tmp_path / "kept"),
        tables=(str(tmp_path / "scores.parquet"),),
        unique="embeddings",
    )
    select(settings)
    kept = keys_of(Dataset.open(str(tmp_path / "kept")))
    assert [key for key in keys if key not in kept] == [keys[5], keys[9], keys[30]]


def test_keys_and_datacomps_uids(whole: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = keys_of(whole)[3::9]
    (tmp_path / "keys.txt").write_text("\n".join([*wanted, "nobody"]))
    out = tmp_path / "some"
    assert main(["shards", "filter", str(whole.folder), "--keys", str(tmp_path / "keys.txt"), "--out", str(out)]) == 0
    assert keys_of(Dataset.open(str(out))) == wanted
    assert main(["shards", "uids", str(out), "--out", str(tmp_path / "some.npy")]) == 0
    uids = [row["uid"] for row in rows_of(whole) if row["key"] in wanted]
    expected = sorted(struct.unpack(">QQ", bytes.fromhex(uid)) for uid in uids)
    assert [tuple(map(int, row)) for row in np.load(tmp_path / "some.npy")] == expected
    again = tmp_path / "again"
    assert main(["shards", "filter", str(whole.folder), "--keys", str(tmp_path / "some.npy"), "--out", str(again)]) == 0
    assert keys_of(Dataset.open(str(again))) == wanted
    (tmp_path / "none.txt").write_text("nobody\n")
    capfd.readouterr()
    line = ["shards", "filter", str(whole.folder), "--keys", str(tmp_path / "none.txt"), "--out", str(tmp_path / "no")]
    assert main(line) == 2
    assert "none of its 1 keys is in" in capfd.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"where": ("widht > 3",)}, r"no sample of shard 00000 has a field 'widht'.*width"),
        ({"where": ("width",)}, "'width' is not understood"),
        ({"best": "score"}, r"--best: 'score' is no amount.*COLUMN=NUMBER"),
        ({"best": "score=130%"}, "is no amount"),
        ({"best": "score=0.5"}, "'score=0.5' is no amount"),
        ({"per": "host=50%"}, "--per: 'host=50%' is a share"),
        ({"sample": "a few"}, "--sample: 'a few' is no amount"),
        ({"sample": "41"}, "41 samples of 40"),
        ({"unique": "embeddings"}, "near embeddings stand in a table"),
        ({"tables": ("nowhere.parquet",)}, "nowhere.parquet: not readable as Parquet"),
        ({"best": "host=10%"}, "the column host holds no numbers"),
    ],
)
def test_a_wrong_rule_is_told_and_leaves_nothing(
    whole: Dataset, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        select(FilterSettings(shards=str(whole.folder), out=str(tmp_path / "out"), **change))
    assert not (tmp_path / "out").exists()


def test_other_rules_or_things_are_not_overwritten(whole: Dataset, tmp_path: Path) -> None:
    out = str(tmp_path / "kept")
    select(FilterSettings(shards=str(whole.folder), out=out, where=("width >= 50",)))
    with pytest.raises(UserError, match="there is a dataset made by filter --where width >= 50"):
        select(FilterSettings(shards=str(whole.folder), out=out, where=("width >= 51",)))
    with pytest.raises(UserError, match="there is a dataset of another origin"):
        select(FilterSettings(shards=out, out=str(whole.folder), where=("width >= 50",)))


def test_an_image_that_went_is_told(whole: Dataset, tmp_path: Path) -> None:
    import shutil  # noqa: PLC0415

    shutil.copytree(whole.folder.path, tmp_path / "data")
    select(FilterSettings(shards=str(tmp_path / "data"), out=str(tmp_path / "kept"), where=("width >= 50",)))
    (tmp_path / "data" / "00002.tar").unlink()
    dataset = Dataset.open(str(tmp_path / "kept"))
    with pytest.raises(UserError, match=r"data.*00002\.tar is missing"):
        dataset.shards[2].image_bytes(0)
    assert "00002.tar is missing" in verify_dataset(str(tmp_path / "kept")).problems[0]


def test_metadata_of_several_kinds_is_compared_as_text(tmp_path: Path) -> None:
    said = [3, "three", None, [3]]
    samples = (
        (f"k{n}", picture(n, 32, 32), "", {"n": json.dumps(x) if isinstance(x, list) else x})
        for n, x in enumerate(said)
    )
    write_shards(tmp_path / "data", [samples], name="mixed")
    select(FilterSettings(shards=str(tmp_path / "data"), out=str(tmp_path / "kept"), where=("n == three",)))
    assert keys_of(Dataset.open(str(tmp_path / "kept"))) == ["k1"]
