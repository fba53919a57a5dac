"""A teacher cache of a dataset is one of every selection of it: samples meet their own rows, nothing is built again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import Dataset, InProcess, UserError
from shards.selection import FilterSettings, materialize, select
from teacher_cache import TeacherCache
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.settings import Join


def build(dataset: Dataset, out: Path, teacher: str) -> str:
    build_cache(
        BuildSettings(
            shards=str(dataset.folder),
            cache=str(out),
            teachers=(TeacherSpec(teacher, "teach"),),
            views=2,
            batch_size=64,
        ),
        InProcess(),
    )
    return str(out)


def said(cache: TeacherCache) -> dict[str, tuple[Any, ...]]:
    """By key what the teacher said of view 1 and of the caption, and that view's crop."""
    found = {}
    for place, shard in enumerate(cache.dataset.shards):
        for row in range(shard.count):
            at, one = np.array([(place, row)]), np.array([1])
            found[shard.keys[row]] = (
                cache.image(at, one).tobytes(),
                cache.text(at).tobytes(),
                cache.view(place, row, 1),
            )
    return found


def picked(of: Dataset, out: Path, **rules: Any) -> Dataset:
    select(FilterSettings(shards=str(of.folder), out=str(out), **rules))
    return Dataset.open(str(out))


def test_selections_have_the_rows_of_what_they_were_selected_from(
    tmp_path: Path, make_dataset: Callable[..., Dataset], save_teacher: Callable[..., str]
) -> None:
    data = make_dataset(tmp_path / "data", (9, 0, 12, 5))
    teacher = save_teacher(tmp_path / "teacher")
    root = build(data, tmp_path / "root", teacher)
    expected = said(TeacherCache.open(root, data))
    few = picked(data, tmp_path / "few", sample="11", seed=1)
    fewer = picked(few, tmp_path / "fewer", sample="5", seed=2)
    for selection in (few, fewer):
        keys = {key for shard in selection.shards for key in shard.keys}
        cache = TeacherCache.open(root, selection)
        assert cache.missing == 0
        assert said(cache) == {key: expected[key] for key in keys}
    # A cache of the selection itself has rows of its own, and is the smaller selection's too; not the whole dataset's.
    own = build(few, tmp_path / "own", teacher)
    assert said(TeacherCache.open(own, fewer)).keys() == said(TeacherCache.open(root, fewer)).keys()
    assert said(TeacherCache.open(own, few)).keys() == said(TeacherCache.open(root, few)).keys()
    with pytest.raises(UserError):
        TeacherCache.open(own, data)
    joined = TeacherCache.open(own, data, join=Join(policy="none"))
    assert joined.missing == 26 - 11


def test_shards_that_the_cache_lacks_are_told_or_left_out(
    tmp_path: Path, make_dataset: Callable[..., Dataset], save_teacher: Callable[..., str]
) -> None:
    data = make_dataset(tmp_path / "data", (9, 12, 5))
    root = build(data, tmp_path / "root", save_teacher(tmp_path / "teacher"))
    expected = said(TeacherCache.open(root, data))
    few = picked(data, tmp_path / "few", sample="15")
    for record in (tmp_path / "root").rglob("_records/00001.*"):
        record.unlink()
    with pytest.raises(UserError, match="1 of 3 shards are not in the cache"):
        TeacherCache.open(root, few)
    cache = TeacherCache.open(root, few, join=Join(policy="none"))
    assert cache.missing == few.shards[1].count > 0
    place = np.array([(0, 0)])
    assert cache.text(place).tobytes() == expected[few.shards[0].keys[0]][1]


def test_what_was_written_anew_is_joined_by_key(
    tmp_path: Path, make_dataset: Callable[..., Dataset], save_teacher: Callable[..., str]
) -> None:
    data = make_dataset(tmp_path / "data", (9, 12, 5))
    root = build(data, tmp_path / "root", save_teacher(tmp_path / "teacher"))
    expected = said(TeacherCache.open(root, data))
    few = picked(data, tmp_path / "few", sample="15")
    materialize([str(few.folder)], str(tmp_path / "anew"), InProcess(), shard_size=4)
    anew = Dataset.open(str(tmp_path / "anew"))
    with pytest.raises(UserError, match="join by key"):
        TeacherCache.open(root, anew)
    cache = TeacherCache.open(root, anew, join=Join(policy="skip"))
    assert cache.missing == 0
    assert said(cache) == {key: expected[key] for shard in anew.shards for key in shard.keys}
