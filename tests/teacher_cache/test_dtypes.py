"""Each way of storing embeddings against another library's arithmetic, and through a whole build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from shards import Dataset, InProcess, UserError
from teacher_cache import EncodedImage, TeacherCache, ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.dtypes import check_dtype, load, row_bytes, store

ALL: list[Any] = ["float16", "bfloat16", "float32", "int8"]
ERROR = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-23}
"""Largest error of one number, relative to itself, after rounding to nearest."""
POLICY = ViewPolicy(scale=(0.3, 1.0))


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def rows() -> npt.NDArray[np.float32]:
    """Of many widths of numbers: the smaller ones of a row are a millionth of its largest."""
    random = np.random.default_rng(4)
    drawn = random.normal(size=(500, 48)) * 10 ** random.uniform(-6, 0, (500, 48))
    drawn[0, :] = 0
    drawn[0, 7] = -1  # nothing but one number
    return unit(drawn).astype(np.float32)


def test_bfloat16_is_torch_s_bit_for_bit(rows: npt.NDArray[np.float32]) -> None:
    # Ties, which go to the even neighbour, and numbers that bfloat16 holds as they are, among random ones.
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x3F808001, 0x3F807FFF, 0x3F810000, 0, 0x80000000], np.uint32)
    for given in (rows, ties.view(np.float32).reshape(1, -1)):
        kept, scales = store(given, "bfloat16")
        expected = torch.from_numpy(given).bfloat16()
        assert scales is None
        assert np.array_equal(kept, expected.view(torch.uint16).numpy())
        wide = expected.float().numpy()
        assert np.allclose(load(kept, "bfloat16"), unit(wide), rtol=0, atol=1e-6)


def test_float16_and_float32_are_numpy_s(rows: npt.NDArray[np.float32]) -> None:
    for dtype, kind in (("float16", np.float16), ("float32", np.float32)):
        kept, scales = store(rows, dtype)  # type: ignore[arg-type]
        assert scales is None
        assert kept.dtype == kind
        assert np.array_equal(kept, rows.astype(kind))
        assert np.allclose(load(kept, dtype), unit(rows.astype(kind)), rtol=0, atol=1e-6)  # type: ignore[arg-type]


def test_int8_errs_by_half_a_step(rows: npt.NDArray[np.float32]) -> None:
    kept, scales = store(rows, "int8")
    assert scales is not None
    assert (kept.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (500,))
    assert (np.abs(kept.astype(int)).max(axis=1) == 127).all()
    steps = np.abs(rows.astype(np.float64)).max(axis=1, keepdims=True) / 127
    back = kept.astype(np.float64) * scales[:, None].astype(np.float64)
    assert (np.abs(back - rows) <= steps * (0.5 + 1e-4)).all()
    assert np.allclose(load(kept, "int8"), unit(back), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ALL)
def test_rows_come_back_as_unit_float32(rows: npt.NDArray[np.float32], dtype: Any) -> None:
    kept, _ = store(rows, dtype)
    kept.setflags(write=False)  # as they are mapped
    got = load(kept, dtype)
    assert (got.dtype, got.shape) == (np.float32, rows.shape)
    assert np.abs(np.linalg.norm(got.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert (got * rows).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("dtype", ALL)
def test_rows_of_zeros_stay_zeros(rows: npt.NDArray[np.float32], dtype: Any) -> None:
    some = rows[:3].copy()
    some[1] = 0
    kept, scales = store(some, dtype)
    assert not kept[1].any()
    got = load(kept, dtype)
    assert not got[1].any()
    assert np.abs(np.linalg.norm(got[[0, 2]], axis=1) - 1).max() < 1e-6
    assert scales is None or np.isfinite(scales).all()


@pytest.mark.parametrize(("dtype", "size"), [("float16", 96), ("bfloat16", 96), ("float32", 192), ("int8", 52)])
def test_what_a_row_costs(rows: npt.NDArray[np.float32], dtype: Any, size: int) -> None:
    kept, scales = store(rows, dtype)
    assert row_bytes(dtype, 48) == size
    assert kept.nbytes + (0 if scales is None else scales.nbytes) == 500 * size


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot be stored as 'float8'. Use float16, bfloat16, float32, int8"):
        check_dtype("float8")
    with pytest.raises(UserError, match="dtype is 'half', it must be one of float16, bfloat16, float32, int8"):
        BuildSettings(shards="a", cache="b", teachers=(TeacherSpec("c"),), dtype="half")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("dtypes") / "shards", (5, 0, 4))


@pytest.fixture(scope="module")
def teacher(linear_teacher: Callable[..., str]) -> str:
    return linear_teacher(size=8, width=24, seed=5)


def said(dataset: Dataset, view: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What the teacher of this module says of a view of every sample and of its caption."""
    pixels, counts = [], []
    for shard in dataset.shards:
        for row, key in enumerate(shard.keys):
            image = EncodedImage(shard.image_bytes(row))
            seen = POLICY.render(image, POLICY.draw(key, view, image.width, image.height), 8)
            pixels.append(seen.reshape(-1) / 255 - 0.5)
            counts.append(np.bincount(list(shard.caption(row).encode()), minlength=256))
    images = np.array(pixels) @ np.random.default_rng(5).normal(size=(192, 24))
    texts = np.array(counts) @ np.random.default_rng(6).normal(size=(256, 24))
    return unit(images), unit(texts)


@pytest.mark.parametrize("dtype", ALL)
def test_a_cache_of_each_type_holds_what_the_teacher_says(
    dataset: Dataset, teacher: str, tmp_path: Path, stored: Callable[..., pa.Table], dtype: Any
) -> None:
    settings = BuildSettings(
        shards=str(dataset.folder),
        cache=str(tmp_path),
        teachers=(TeacherSpec(teacher, "teach"),),
        views=2,
        policy=POLICY,
        dtype=dtype,
        batch_size=4,
    )
    build_cache(settings, InProcess())
    cache = TeacherCache.open(str(tmp_path), dataset)
    places = np.array([(place, row) for place, shard in enumerate(dataset.shards) for row in range(shard.count)])
    for view in range(2):
        images, texts = said(dataset, view)
        gotten = (cache.image(places, np.full(9, view)), images), (cache.text(places), texts)
        for got, expected in gotten:
            if dtype == "int8":
                limit = np.abs(expected).max(axis=1, keepdims=True) / 254
            else:
                limit = np.abs(expected) * ERROR[dtype]
            # Making the rounded row unit again moves it once more, along itself, by no more than it was moved.
            again = np.linalg.norm(np.broadcast_to(limit, expected.shape), axis=1, keepdims=True) * np.abs(expected)
            assert (np.abs(got - expected) <= limit * 1.001 + again + 3e-7).all()
            assert np.abs(np.linalg.norm(got.astype(np.float64), axis=1) - 1).max() < 1e-6
    table = stored(tmp_path, "views-000-001", 2)
    kinds = {"float16": pa.float16(), "bfloat16": pa.uint16(), "float32": pa.float32(), "int8": pa.int8()}
    assert table["view_001"].type == pa.list_(kinds[dtype], 24)
    assert [name for name in table.column_names if "scale" in name] == (
        ["view_000_scale", "view_001_scale"] if dtype == "int8" else []
    )
    if dtype == "int8":
        back = np.array(table["view_001"].to_pylist()) * table["view_001_scale"].to_numpy()[:, None]
        assert np.abs(np.linalg.norm(back, axis=1) - 1).max() < 0.02


def test_a_file_of_another_type_than_its_layer_says_is_refused(
    dataset: Dataset, teacher: str, tmp_path: Path, forge: Callable[..., None]
) -> None:
    settings = BuildSettings(
        shards=str(dataset.folder), cache=str(tmp_path), teachers=(TeacherSpec(teacher, "teach"),), views=1
    )
    build_cache(settings, InProcess())

    def widen(table: pa.Table) -> pa.Table:
        return table.set_column(0, "view_000", table["view_000"].cast(pa.list_(pa.float32(), 24)))

    forge(tmp_path / "teach/views-000-000", 2, widen)
    cache = TeacherCache.open(str(tmp_path), dataset)
    told = r"00002\.arrow has a column view_000 that is .*<item: float>\[24\], it should be .*<item: halffloat>\[24\]"
    with pytest.raises(UserError, match=told):
        cache.image(np.array([(2, 0)]), np.array([0]))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_another_type_in_a_standing_cache_is_refused(
    dataset: Dataset, teacher: str, tmp_path: Path, dtype: Any
) -> None:
    chosen: dict[str, Any] = {"shards": str(dataset.folder), "cache": str(tmp_path), "views": 1, "batch_size": 4}
    chosen["teachers"] = (TeacherSpec(teacher, "teach"),)
    build_cache(BuildSettings(**chosen), InProcess())
    with pytest.raises(UserError, match=rf'dtype was "float16", now "{dtype}"'):
        build_cache(BuildSettings(**{**chosen, "views": 2, "dtype": dtype}), InProcess())
