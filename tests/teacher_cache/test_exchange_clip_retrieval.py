"""clip-retrieval's arrays in and out, against files written and read here with plain numpy and pandas' Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipstill.main import main
from shards import Dataset, Folder, InProcess, UserError
from teacher_cache.exchange import export_clip_retrieval, import_clip_retrieval
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import Join
from teacher_cache.views import ViewPolicy
from tests.conftest import model_cfg

WIDTH = 8
OPTIONS: dict[str, Any] = {"teacher": "small:8d", "logit_scale": 100.0, "image_size": 224}


def unit(seed: int, rows: int) -> np.ndarray:
    numbers = np.random.default_rng(seed).normal(size=(rows, WIDTH))
    return (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float16)


def write(
    folder: Path, number: str, columns: dict[str, list[str]], *, seed: int, kinds: str = "img text"
) -> dict[str, np.ndarray]:
    """One partition; what was written, by kind."""
    written = {}
    for kind in kinds.split():
        (folder / f"{kind}_emb").mkdir(parents=True, exist_ok=True)
        written[kind] = unit(seed + len(kind), len(columns["image_path"]))
        np.save(folder / f"{kind}_emb" / f"{kind}_emb_{number}.npy", written[kind])
    (folder / "metadata").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    return written


def bring(root: Path, **options: Any) -> Any:
    places = (str(root / name) for name in ("emb", "set", "cache"))
    return import_clip_retrieval(*places, InProcess(), **{**OPTIONS, **options})


def test_rows_come_to_the_samples_they_belong_to(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(tmp_path / "set", [3, 4])
    samples = [(shard.keys[row], shard.caption(row)) for shard in dataset.shards for row in range(shard.count)]
    keys, captions = (list(column) for column in zip(*samples, strict=True))
    captions[5] = "another caption"
    order = [6, 0, 3, 5, 1]
    columns = {"image_path": [f"/data/{keys[at]}.jpg" for at in order], "caption": [captions[at] for at in order]}
    first = write(tmp_path / "emb", "0", columns, seed=1)
    columns = {"image_path": [keys[4], "not-ours"], "caption": [captions[4], "x"]}
    second = write(tmp_path / "emb", "1", columns, seed=2)
    report = bring(tmp_path)
    # Sample 2 is nowhere, sample 5 has another caption.
    assert (report.samples, report.absent, report.left_out, report.unused) == (5, 1, {"changed": 1}, 1)
    cache = TeacherCache.open(str(tmp_path / "cache"), dataset, None, Join(policy="none"))
    assert (cache.views, cache.captions, cache.teacher.logit_scale) == (1, {"txt": 1}, 100.0)
    assert cache.policy == ViewPolicy(kind="centre")
    expected = {0: (first, 1), 1: (first, 4), 3: (first, 2), 6: (first, 0), 4: (second, 0)}
    for number, (written, row) in expected.items():
        place = np.array([[0, number] if number < 3 else [1, number - 3]])
        np.testing.assert_allclose(cache.image(place, np.array([0]))[0], written["img"][row], atol=1e-3)
        np.testing.assert_allclose(cache.text(place)[0], written["text"][row], atol=1e-3)
    assert cache.present(np.array([[0, 2], [1, 2]])).tolist() == [False, False]


def test_samples_are_matched_by_a_field_and_images_alone_are_enough(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    dataset = make_dataset(tmp_path / "set", [3])
    captions = [dataset.shards[0].caption(row) for row in range(3)]
    columns = {"image_path": ["a/x.y", "b", "c"], "text": captions[::-1]}
    written = write(tmp_path / "emb", "0", columns, seed=3, kinds="img")
    report = bring(tmp_path, column="text", key_column="caption", kind="squash", dtype="float32")
    assert (report.samples, report.left_out) == (3, {})
    cache = TeacherCache.open(str(tmp_path / "cache"), dataset)
    assert not cache.captions
    assert not cache.teacher.has_text
    places = np.array([[0, 0], [0, 1], [0, 2]])
    # As stored, then of unit norm.
    wide = written["img"][::-1].astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(cache.image(places, np.zeros(3, np.int64)), wide, atol=1e-6)


def test_an_import_waits_for_whoever_is_at_work_in_the_cache(
    tmp_path: Path, make_dataset: Callable[..., Dataset], caplog: pytest.LogCaptureFixture
) -> None:
    keys = make_dataset(tmp_path / "set", [3]).shards[0].keys
    write(tmp_path / "emb", "0", {"image_path": keys}, seed=1, kinds="img")
    with ThreadPoolExecutor(1) as pool:
        with Folder(tmp_path / "cache").alone():
            report = pool.submit(bring, tmp_path)
            while "another run is at work here" not in caplog.text:
                assert not report.done()
            assert list((tmp_path / "cache").iterdir()) == []
        assert report.result().samples == 3


def test_rows_that_cannot_be_told_apart_are_left_out(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    """`other/K.jpg` and `mine/K.jpg` both have the name of our sample K, in one partition or in two."""
    dataset = make_dataset(tmp_path / "set", [4])
    keys = dataset.shards[0].keys
    paths = [f"other/{keys[0]}.jpg", f"mine/{keys[0]}.jpg", keys[1], keys[2], "elsewhere"]
    first = write(tmp_path / "emb", "0", {"image_path": paths}, seed=1)
    write(tmp_path / "emb", "1", {"image_path": [f"more/{keys[2]}.jpg"]}, seed=2)
    report = bring(tmp_path)
    assert (report.samples, report.absent, report.unused) == (1, 1, 1)
    assert report.left_out == {"ambiguous": 2}
    cache = TeacherCache.open(str(tmp_path / "cache"), dataset, None, Join(policy="none"))
    assert cache.present(np.array([[0, row] for row in range(4)])).tolist() == [False, True, False, False]
    np.testing.assert_allclose(cache.image(np.array([[0, 1]]), np.array([0]))[0], first["img"][2], atol=1e-3)


def test_captions_are_compared_where_the_metadata_has_them(
    tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    """None of them is read again by a shard: metadata that is gone after the index was made is not missed."""
    dataset = make_dataset(tmp_path / "set", [3])
    shard = dataset.shards[0]
    captions = [shard.caption(0), None, shard.caption(2) + " "]
    write(tmp_path / "emb", "0", {"image_path": shard.keys, "caption": captions}, seed=1)  # type: ignore[dict-item]
    places = [str(tmp_path / name) for name in ("emb", "set", "cache")]
    gone = tmp_path / "emb" / "metadata" / "metadata_0.parquet"

    class WithoutMetadata(InProcess):
        def start(self, task: Any) -> None:
            gone.unlink()
            super().start(task)

    # The column that samples are matched by may be the very same.
    assert bring(tmp_path, column="caption", key_column="caption", teacher="large:8d").samples == 1
    report = import_clip_retrieval(*places, WithoutMetadata(), **OPTIONS)
    assert (report.samples, report.absent, report.left_out) == (2, 0, {"changed": 1})


def test_user_errors(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(tmp_path / "set", [2])
    keys = dataset.shards[0].keys
    with pytest.raises(UserError, match=r"holds no metadata/metadata_N\.parquet"):
        bring(tmp_path)
    write(tmp_path / "emb", "0", {"image_path": keys}, seed=1)
    with pytest.raises(UserError, match="no column 'uid'; it has image_path"):
        bring(tmp_path, column="uid", key_column="uid")
    np.save(tmp_path / "emb" / "text_emb" / "text_emb_0.npy", unit(1, 3))
    with pytest.raises(UserError, match=r"shape \(3, 8\), its metadata 2 rows"):
        bring(tmp_path)
    np.save(tmp_path / "emb" / "text_emb" / "text_emb_0.npy", np.array([[{}]], object))
    with pytest.raises(UserError, match="not readable as an array"):
        bring(tmp_path)
    rows = unit(1, 2)
    rows[1, 3] = np.nan
    np.save(tmp_path / "emb" / "text_emb" / "text_emb_0.npy", rows)
    with pytest.raises(UserError, match="row 1 is zero or not finite"):
        bring(tmp_path)


def test_an_export_is_what_an_import_reads(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(tmp_path / "set", [3, 2])
    names = [key for shard in dataset.shards for key in shard.keys]
    captions = [shard.caption(row) for shard in dataset.shards for row in range(shard.count)]
    chosen = [0, 2, 3, 4]
    columns = {"image_path": [names[at] for at in chosen], "caption": [captions[at] for at in chosen]}
    written = write(tmp_path / "emb", "0", columns, seed=9)
    bring(tmp_path)
    assert export_clip_retrieval(*(str(tmp_path / name) for name in ("cache", "set", "out"))) == 4
    for kind in ("img", "text"):
        parts = [np.load(tmp_path / "out" / f"{kind}_emb" / f"{kind}_emb_{number}.npy") for number in range(2)]
        assert [(part.dtype, part.shape) for part in parts] == [(np.dtype(np.float16), (2, 8))] * 2
        np.testing.assert_allclose(np.concatenate(parts), written[kind], atol=1e-3)
    tables = [pq.read_table(tmp_path / "out" / "metadata" / f"metadata_{number}.parquet") for number in range(2)]
    assert [row["image_path"] for table in tables for row in table.to_pylist()] == [names[at] for at in chosen]
    assert [row["caption"] for table in tables for row in table.to_pylist()] == [captions[at] for at in chosen]
    again = import_clip_retrieval(*(str(tmp_path / name) for name in ("out", "set", "again")), InProcess(), **OPTIONS)
    assert (again.samples, again.absent, again.unused) == (4, 1, 0)
    facts = json.loads((tmp_path / "again" / "small-8d" / "teacher.json").read_text())
    assert (facts["spec"], facts["embed_dim"]) == ("small:8d", WIDTH)


def test_samples_are_joined_by_a_column_that_both_sides_have(
    tmp_path: Path, make_dataset: Callable[..., Dataset], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the captions here, in another order; one of theirs is nobody's, one stands twice, one of ours is not there."""
    dataset = make_dataset(tmp_path / "set", [5])
    shard = dataset.shards[0]
    captions = [shard.caption(row) for row in (3, 0, 2, 2, 1)]
    columns = {"image_path": [f"{row:09d}" for row in range(6)], "caption": [*captions, "nobody's"]}
    written = write(tmp_path / "emb", "0", columns, seed=4, kinds="img")
    command = ["cache", "import", str(tmp_path / "set"), str(tmp_path / "emb"), "--format", "clip-retrieval"]
    command += ["--teacher", "small:8d", "--image-size", "32", "--in-process", "--key-column", "caption"]
    assert main([*command, "--out", str(tmp_path / "cache")]) == 0
    told = capsys.readouterr().out
    assert "3 samples have embeddings now" in told
    assert "1 of yours are not there, 1 left out as ambiguous; 1 rows there are not yours" in told
    cache = TeacherCache.open(str(tmp_path / "cache"), dataset, None, Join(policy="none"))
    found = cache.image(np.array([[0, 3], [0, 0], [0, 1]]), np.zeros(3, np.int64))
    np.testing.assert_allclose(found, written["img"][[0, 1, 4]], atol=1e-3)
    assert main([*command, "--column", "caption", "--out", str(tmp_path / "again")]) == 0
    assert main([*command, "--column", "address", "--out", str(tmp_path / "no")]) == 2
    assert "no column 'address'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("claim", "values"),
    [
        ({"teacher": "ViT-B-32:openai", "image_size": 224}, ["512", "8"]),
        ({"teacher": "ViT-L/14", "image_size": 224}, ["768", "8"]),
        ({"teacher": "FOLDER", "image_size": 224}, ["32", "224"]),
        ({"teacher": "FOLDER", "image_size": 32, "kind": "squash"}, ["crops", "--squash"]),
    ],
)
def test_what_cannot_be_that_teachers_is_refused_without_its_weights(
    tmp_path: Path, make_dataset: Callable[..., Dataset], claim: dict[str, Any], values: list[str]
) -> None:
    keys = make_dataset(tmp_path / "set", [2]).shards[0].keys
    write(tmp_path / "emb", "0", {"image_path": keys}, seed=1)
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_cfg": model_cfg(dim=WIDTH), "preprocess_cfg": {"resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    teacher = str(folder) if claim["teacher"] == "FOLDER" else claim["teacher"]
    with pytest.raises(UserError) as refused:
        bring(tmp_path, **{**claim, "teacher": teacher})
    assert all(value in str(refused.value) for value in values)
    assert not (tmp_path / "cache").exists()
    assert bring(tmp_path, **{**claim, "teacher": str(folder), "image_size": 32, "kind": "centre"}).samples == 2
