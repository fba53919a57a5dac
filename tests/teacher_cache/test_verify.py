"""`verify_cache` passes what is sound, says how far rounding moves a logit, and finds what Arrow would not notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards import Dataset, InProcess, UserError
from teacher_cache import TeacherCache
from teacher_cache.build import BuildSettings, build_cache
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
        teacher=save_teacher(root / "teacher", scale=100.0),
        name="teach",
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
    text = np.concatenate([opened.text(shard, range(shard.count)) for shard in dataset.shards if shard.count])
    logits = []
    for view in range(2):
        image = [opened.image(shard, range(shard.count), view) for shard in dataset.shards if shard.count]
        logits.append(np.abs(np.concatenate(image) @ text.T).max(axis=1) * 200)
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
    forge(layer, 2, lambda table: table.set_column(0, "key", pa.array(keys)))
    report = verify()
    assert report.min_cosine < 0.999
    (problem,) = report.problems
    assert problem.startswith("recomputed logits differ by up to ")


def test_a_crop_that_is_not_the_policys_is_found(verify: Callable[[], CacheReport], cache: str, forge: Forge) -> None:
    def shift(rows: np.ndarray) -> None:
        rows[:, 0] += 0.01

    for view in (0, 1):
        forge(f"{cache}/teach/views-000-001", 2, lambda table, view=view: with_column(table, f"crop_{view:03d}", shift))
    problems = verify().problems
    assert len(problems) == 9
    assert all("is kept as View(" in problem and "the policy draws View(" in problem for problem in problems)


def test_an_embedding_of_another_width_is_found(verify: Callable[[], CacheReport], cache: str, forge: Forge) -> None:
    def narrow(table: pa.Table) -> pa.Table:
        rows = np.full((table.num_rows, 16), 0.25, np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 16)
        return table.set_column(table.column_names.index("view_000"), "view_000", column)

    forge(f"{cache}/teach/views-000-001", 0, narrow)
    assert verify().problems == ("views-000-001/00000.arrow: view_000 has width 16, the teacher 40",)


def test_another_teacher_is_refused_and_a_moved_one_is_found(
    original: BuildSettings, tmp_path: Path, save_teacher: Callable[..., str]
) -> None:
    other = save_teacher(tmp_path / "other", seed=9, scale=100.0)
    with pytest.raises(UserError, match=r"weights [0-9a-f]{16}\), the cache was built by .* \(weights [0-9a-f]{16}\)"):
        verify_cache(original.shards, original.cache, teacher=other)
    moved = str(shutil.copytree(original.teacher, tmp_path / "moved"))
    assert verify_cache(original.shards, original.cache, teacher=moved, rows=2).problems == ()


def test_another_dataset_is_refused(
    original: BuildSettings, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset(tmp_path / "other", COUNTS, seed=8)
    with pytest.raises(UserError, match="was cached from content"):
        verify_cache(str(tmp_path / "other"), original.cache)
