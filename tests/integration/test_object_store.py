"""Shards and cache on an object store: built, grown, proven and trained from as on a disk, to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from distill.settings import OptimiserSettings, RunSettings
from distill.training.train import train
from shards import Dataset, InProcess, UserError
from teacher_cache import TeacherCache
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.verify import verify_cache

COUNTS = (7, 0, 9)


def test_a_cache_on_an_object_store_is_what_it_is_on_a_disk(
    bucket: str,
    tmp_path: Path,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
) -> None:
    near = make_dataset(tmp_path / "shards", COUNTS)
    far = make_dataset(f"{bucket}/shards", COUNTS)
    assert far.content == near.content
    teacher, student = save_teacher(tmp_path / "teacher"), save_student(tmp_path / "student.json")
    here = BuildSettings(
        shards=str(near.folder),
        cache=str(tmp_path / "cache"),
        teachers=(TeacherSpec(teacher, "teach"),),
        views=1,
        batch_size=64,
    )
    there = replace(here, shards=str(far.folder), cache=f"{bucket}/cache")
    for views in (1, 3):
        for settings in (here, there):
            build_cache(replace(settings, views=views), InProcess())
    again = build_cache(replace(there, views=3), InProcess())
    assert (again.summary.skipped, again.summary.finished, again.views) == (9, 0, 3)

    store = s3fs.S3FileSystem()
    base = there.cache.removeprefix("s3://")
    remote = {name.removeprefix(f"{base}/"): store.cat_file(name) for name in store.find(base)}
    local = {
        str(path.relative_to(here.cache)): path.read_bytes() for path in Path(here.cache).rglob("*") if path.is_file()
    }
    assert remote == local

    assert verify_cache(there.shards, there.cache, rows=20).problems == ()
    optimiser = OptimiserSettings(lr=1e-3, warmup=2)
    models = []
    for settings, name in ((here, "near"), (there, "far")):
        run = RunSettings(
            shards=settings.shards,
            cache=settings.cache,
            out=str(tmp_path / name),
            student=student,
            steps=5,
            batch_size=5,
            optimiser=optimiser,
        )
        models.append((Path(train(run).model) / "open_clip_model.safetensors").read_bytes())
    assert models[0] == models[1]

    # What is damaged there is found there, though sound copies were fetched before.
    name = f"{base}/teach/views-001-002/00002.arrow"
    data = store.cat_file(name)
    store.pipe_file(name, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    (problem,) = verify_cache(there.shards, there.cache).problems
    assert problem.startswith("views-001-002/00002.arrow: hashes to ")
    store.rm_file(name)
    assert verify_cache(there.shards, there.cache).problems == ("views-001-002/00002.arrow: missing",)


def test_what_is_not_there_is_said(bucket: str, tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(tmp_path / "shards", (3,))
    with pytest.raises(UserError, match=f"{bucket}/cache: no teacher cache here"):
        TeacherCache.open(f"{bucket}/cache", dataset)
