"""`verify_cache` passes what is sound, says how far rounding moves a logit, and finds what Arrow would not notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import Dataset, Folder, InProcess, Spec, UserError
from shards.publication import Publication
from teacher_cache import TeacherCache
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource
from teacher_cache.dtypes import store
from teacher_cache.layout import LayerFacts, TeacherFacts, layer_table, publish_facts, write_layer_file
from teacher_cache.verify import CacheReport, verify_cache

COUNTS = (6, 0, 9)
Forge = Callable[[str | Path, int, Callable[[pa.Table], pa.Table]], None]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def dataset(root: Path, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(root / "shards", COUNTS)


@pytest.fixture(scope="module")
def original(root: Path, dataset: Dataset, save_teacher: Callable[..., str]) -> BuildSettings:
    settings = BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=(TeacherSpec(save_teacher(root / "teacher", scale=100.0), "teach"),),
        views=2,
        batch_size=5,
    )
    build_cache(settings, InProcess())
    return settings


@pytest.fixture
def cache(original: BuildSettings, tmp_path: Path) -> str:
    """A copy to do harm to."""
    return str(shutil.copytree(original.cache, tmp_path / "cache"))


@pytest.fixture
def verify(original: BuildSettings, cache: str) -> Callable[[], CacheReport]:
    return lambda: verify_cache(original.shards, cache, rows=200)


def with_column(table: pa.Table, name: str, change: Callable[[np.ndarray], None]) -> pa.Table:
    """`table` with the (rows, D) float16 column `name` changed in place by `change`."""
    column = table[name].combine_chunks()
    width = column.type.list_size
    rows = column.values.to_numpy(zero_copy_only=False).reshape(-1, width).copy()
    change(rows)
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1), column.type.value_type), width)
    return table.set_column(table.column_names.index(name), name, values)


def test_a_sound_cache_passes_and_its_drift_is_the_rounding(original: BuildSettings, dataset: Dataset) -> None:
    report = verify_cache(original.shards, original.cache, rows=400)
    assert report.problems == ()
    assert (report.files, report.rows, report.recomputed) == (6, 15, 15)
    assert 1 - 1e-6 < report.min_cosine < 1 + 1e-6
    # Each of D = 40 products errs by half a float16 unit of either factor at most; measured, far less.
    assert 1e-5 < report.logit_drift < 100 * 2 * 2.0**-11
    assert report.logit_drift < 0.02
    fewer = verify_cache(original.shards, original.cache, rows=3, seed=4)
    assert 1 <= fewer.recomputed <= 3
    none = verify_cache(original.shards, original.cache, rows=0)
    assert (none.problems, none.files, none.recomputed) == ((), 6, 0)
    strict = verify_cache(original.shards, original.cache, rows=400, tolerance=1e-6)
    (problem,) = strict.problems
    assert problem == f"recomputed logits differ by up to {report.logit_drift:.4f}, the tolerance is 1e-06"
    del dataset


def test_drift_is_the_largest_change_of_a_logit(
    original: BuildSettings, dataset: Dataset, cache: str, forge: Forge
) -> None:
    """With every stored caption turned round, each logit changes by twice itself."""
    for shard in (0, 2):
        forge(
            f"{cache}/teach/captions-txt",
            shard,
            lambda table: with_column(table, "caption_000", lambda rows: np.negative(rows, out=rows)),
        )
    report = verify_cache(original.shards, cache, rows=400)
    opened = TeacherCache.open(original.cache, dataset)
    places = np.array([(place, row) for place, shard in enumerate(dataset.shards) for row in range(shard.count)])
    text = opened.text(places)
    logits = [np.abs(opened.image(places, np.full(15, view)) @ text.T).max(axis=1) * 200 for view in range(2)]
    # One view of each image was looked at, chosen by hash.
    assert min(logits[0].max(), logits[1].max()) * 0.9 < report.logit_drift <= np.max(logits) + 0.05
    assert report.min_cosine == pytest.approx(-1, abs=1e-6)
    (problem,) = report.problems
    assert "the tolerance is 0.05" in problem


def test_a_flipped_bit_is_found_wherever_it_is(verify: Callable[[], CacheReport], cache: str) -> None:
    path = Path(cache, "teach", "views-000-001", "00002.arrow")
    data = path.read_bytes()
    for at in (8, len(data) // 3, len(data) - 20):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        report = verify()
        (problem,) = report.problems
        assert problem.startswith("views-000-001/00002.arrow: hashes to ")
        assert report.recomputed == 0


def test_absent_and_cut_files_are_found(verify: Callable[[], CacheReport], cache: str) -> None:
    Path(cache, "teach", "views-000-001", "00000.arrow").unlink()
    path = Path(cache, "teach", "captions-txt", "00002.arrow")
    path.write_bytes(path.read_bytes()[:-100])
    missing, cut = verify().problems
    assert missing == "views-000-001/00000.arrow: missing"
    assert cut.startswith("captions-txt/00002.arrow: hashes to ")


def nan(rows: np.ndarray) -> None:
    rows[4, 7] = np.nan


def longer(rows: np.ndarray) -> None:
    rows[2] *= 1.05


def zero(rows: np.ndarray) -> None:
    rows[5] = 0


@pytest.mark.parametrize("case", [(nan, 4, "nan"), (longer, 2, "1.0"), (zero, 5, "0.0000")])
def test_numbers_that_cannot_be_are_found(
    verify: Callable[[], CacheReport], cache: str, forge: Forge, case: tuple[Callable[[np.ndarray], None], int, str]
) -> None:
    harm, row, norm = case
    forge(f"{cache}/teach/views-000-001", 2, lambda table: with_column(table, "view_001", harm))
    (problem,) = verify().problems
    assert problem.startswith(f"views-000-001/00002.arrow: view_001 of tiny-{6 + row:09d} has norm {norm}")
    assert problem.endswith("(1 such rows)")


def test_rows_of_other_samples_are_found(verify: Callable[[], CacheReport], cache: str, forge: Forge) -> None:
    """Whether the key column shows it or not."""
    layer = f"{cache}/teach/captions-txt"
    turned = [1, 0, *range(2, 9)]
    forge(layer, 2, lambda table: table.take(turned))
    (problem,) = verify().problems
    assert problem == "captions-txt/00002.arrow: its keys are not the shard's"
    keys = [f"tiny-{row:09d}" for row in range(6, 15)]
    forge(layer, 2, lambda table: table.set_column(table.column_names.index("key"), "key", pa.array(keys)))
    report = verify()
    assert report.min_cosine < 0.999
    (problem,) = report.problems
    assert problem.startswith("recomputed logits differ by up to ")


def test_a_crop_that_is_not_the_policys_is_found(verify: Callable[[], CacheReport], cache: str, forge: Forge) -> None:
    def shift(table: pa.Table, view: int) -> pa.Table:
        name = f"params_{view:03d}"
        packed = np.frombuffer(b"".join(table[name].to_pylist()), np.uint8).reshape(-1, 17).copy()
        left = packed[:, :4].copy().view("<f4") + np.float32(0.01)
        packed[:, :4] = left.view(np.uint8)
        column = pa.array([bytes(row) for row in packed], pa.binary(17))
        return table.set_column(table.column_names.index(name), name, column)

    for view in (0, 1):
        forge(f"{cache}/teach/views-000-001", 2, lambda table, view=view: shift(table, view))
    problems = verify().problems
    assert len(problems) == 9
    assert all("is kept as View(" in problem and "the policy draws View(" in problem for problem in problems)


def test_an_embedding_of_another_width_is_found(verify: Callable[[], CacheReport], cache: str, forge: Forge) -> None:
    def narrow(table: pa.Table) -> pa.Table:
        rows = np.full((table.num_rows, 16), 0.25, np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 16)
        return table.set_column(table.column_names.index("view_000"), "view_000", column)

    forge(f"{cache}/teach/views-000-001", 0, narrow)
    (problem,) = verify().problems
    assert problem.startswith("views-000-001/00000.arrow: has a column view_000 that is fixed_size_list")
    assert "halffloat>[16], the layer's are fixed_size_list" in problem
    assert problem.endswith("halffloat>[40]")


def test_another_teacher_is_refused_and_a_moved_one_is_found(
    original: BuildSettings, tmp_path: Path, save_teacher: Callable[..., str]
) -> None:
    other = save_teacher(tmp_path / "other", seed=9, scale=100.0)
    with pytest.raises(UserError, match=r"weights [0-9a-f]{16}\), the cache was built by .* \(weights [0-9a-f]{16}\)"):
        verify_cache(original.shards, original.cache, teacher=other)
    moved = str(shutil.copytree(original.teachers[0].spec, tmp_path / "moved"))
    assert verify_cache(original.shards, original.cache, teacher=moved, rows=2).problems == ()
    kept = Path(original.teachers[0].spec)
    away = kept.rename(kept.with_name("away"))
    try:
        with pytest.raises(UserError, match=r"cannot be loaded from where the cache has it from.*now with --teacher"):
            verify_cache(original.shards, original.cache, rows=2)
    finally:
        away.rename(kept)


def test_another_dataset_is_refused(
    original: BuildSettings, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset(tmp_path / "other", COUNTS, seed=8)
    with pytest.raises(UserError, match="was cached from content"):
        verify_cache(str(tmp_path / "other"), original.cache)


def test_a_file_of_another_type_is_found(verify: Callable[[], CacheReport], cache: str, forge: Forge) -> None:
    def widen(table: pa.Table) -> pa.Table:
        return table.set_column(0, "caption_000", table["caption_000"].cast(pa.list_(pa.float32(), 40)))

    forge(f"{cache}/teach/captions-txt", 2, widen)
    (problem,) = verify().problems
    assert problem.startswith("captions-txt/00002.arrow: caption_000 is fixed_size_list")


@pytest.fixture(scope="module")
def linear(root: Path, dataset: Dataset, linear_teacher: Callable[..., str]) -> BuildSettings:
    """Two quick teachers with three sets of captions, not built yet."""
    table = root / "captions.parquet"
    keys = [key for shard in dataset.shards for key in shard.keys]
    pq.write_table(pa.table({"key": keys, "said": [[f"{key} a", f"{key} b"] for key in keys]}), table)
    return BuildSettings(
        shards=str(dataset.folder),
        cache="set by each test",
        teachers=(
            TeacherSpec(linear_teacher(width=24, scale=100.0), "first"),
            TeacherSpec(linear_teacher(width=16, size=12, seed=4, scale=100.0), "second"),
        ),
        views=2,
        captions=tuple(CaptionSource.parse(text) for text in ("txt", "json:caption", f"table:{table}#said*2")),
        batch_size=8,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_each_type_is_within_its_tolerance_and_not_far_below(
    linear: BuildSettings, dataset: Dataset, tmp_path: Path, dtype: Any
) -> None:
    """Teachers and caption sets one by one; the drift is the rounding's, worked out here from the numbers."""
    build_cache(replace(linear, cache=str(tmp_path), dtype=dtype), InProcess())
    exact_at = tmp_path / "exact"
    build_cache(replace(linear, cache=str(exact_at), dtype="float32"), InProcess())
    places = np.array([(place, row) for place, shard in enumerate(dataset.shards) for row in range(shard.count)])
    for name in ("first", "second"):
        report = verify_cache(linear.shards, str(tmp_path), teacher_name=name, rows=400)
        assert report.problems == ()
        assert (report.teacher, report.files, report.recomputed) == (name, 12, 15)
        rounded, exact = (TeacherCache.open(str(at), dataset, name) for at in (tmp_path, exact_at))
        drifts = [
            np.abs(
                rounded.image(places, views) @ rounded.text(places, number, source).T
                - exact.image(places, views) @ exact.text(places, number, source).T
            ).max()
            * 100
            for views in (np.zeros(15, np.int64), np.ones(15, np.int64))
            for source, count in exact.captions.items()
            for number in range(count)
        ]
        assert report.logit_drift <= max(drifts) + 1e-4
        assert report.tolerance == {"float16": 0.05, "bfloat16": 0.5, "float32": 0.02, "int8": 1.0}[dtype]
    with pytest.raises(UserError, match="several teachers: first, second"):
        verify_cache(linear.shards, str(tmp_path))


def test_harm_to_one_teacher_is_not_the_other_s(
    linear: BuildSettings, dataset: Dataset, tmp_path: Path, forge: Forge
) -> None:
    build_cache(replace(linear, cache=str(tmp_path)), InProcess())

    def swap(rows: np.ndarray) -> None:
        rows[[0, 1]] = rows[[1, 0]]

    layer = tmp_path / "second" / "captions-table-said"
    for number in (0, 1):
        forge(layer, 2, lambda table, number=number: with_column(table, f"caption_{number:03d}", swap))
    assert verify_cache(linear.shards, str(tmp_path), teacher_name="first", rows=400).problems == ()
    # One caption of each sample is looked at, so several draws.
    reports = [verify_cache(linear.shards, str(tmp_path), teacher_name="second", rows=400, seed=n) for n in range(6)]
    assert any(report.problems for report in reports)
    assert dataset.shards[2].count == 9


def test_a_teacher_of_texts_alone_is_verified(
    linear: BuildSettings, tmp_path: Path, linear_teacher: Callable[..., str], forge: Forge
) -> None:
    teachers = (TeacherSpec(linear_teacher(without=("embed_images",), scale=100.0), "teach"),)
    build_cache(replace(linear, cache=str(tmp_path), teachers=teachers), InProcess())
    report = verify_cache(linear.shards, str(tmp_path), rows=400)
    assert (report.problems, report.files, report.recomputed) == ((), 9, 15)
    assert report.min_cosine > 1 - 1e-5

    def turn(rows: np.ndarray) -> None:
        rows *= -1

    for layer, columns in (("txt", 1), ("json-caption", 1), ("table-said", 2)):
        for number in range(columns):
            change = lambda table, number=number: with_column(table, f"caption_{number:03d}", turn)  # noqa: E731
            forge(tmp_path / "teach" / f"captions-{layer}", 2, change)
    assert verify_cache(linear.shards, str(tmp_path), rows=400).min_cosine == pytest.approx(-1, abs=1e-5)


def test_imported_embeddings_are_not_recomputed(linear: BuildSettings, dataset: Dataset, tmp_path: Path) -> None:
    """Whoever made them is not at hand: files, keys and norms are looked at all the same."""
    random = np.random.default_rng(2)
    facts = TeacherFacts(
        name="teach",
        spec="somebody's",
        identity={"kind": "imported"},
        embed_dim=12,
        logit_scale=100.0,
        logit_bias=None,
        image_size=None,
        has_text=True,
        versions={},
    )
    folder = Folder(str(tmp_path)).child("teach")
    publish_facts(folder, "teacher.json", facts)
    settings = {"dtype": "float16", "precision": "", "source": {"kind": "txt", "count": 1}}
    layer = LayerFacts(
        kind="captions",
        name="captions-txt",
        columns=(0,),
        teacher=facts.fingerprint,
        settings=settings,
        dataset="tiny",
        batch_size=0,
    )
    place = folder.child(layer.name)
    publish_facts(place, "layer.json", layer)
    for shard in dataset.shards:
        keys = shard.keys[1:]  # not of every sample
        rows = random.normal(size=(len(keys), 12)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        rows[3:4] *= 1.5 if shard.id == 2 else 1
        publication = Publication(Spec(shard.id, place, layer.shard_fingerprint(shard.content)), shard.content)
        with publication.file(".arrow") as path:
            write_layer_file(str(path), layer_table(layer, keys, [store(rows, "float16")]))
        publication.finish(len(keys), {})
    report = verify_cache(linear.shards, str(tmp_path))
    assert report.recomputed == 0
    assert np.isnan(report.logit_drift)
    (problem,) = report.problems
    assert problem.startswith(f"captions-txt/00002.arrow: caption_000 of {dataset.shards[2].keys[4]} has norm 1.5")
