from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shards import Dataset, InProcess


@pytest.fixture(scope="session", autouse=True)
def _quiet(one_thread: None) -> None:
    """Every test here computes on one thread."""


@pytest.fixture(scope="session", autouse=True)
def _quick() -> Iterator[None]:
    """CLIP's vocabulary is read once, not for each of hundreds of runs."""
    import open_clip  # noqa: PLC0415

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip, "get_tokenizer", functools.cache(open_clip.get_tokenizer))
        yield


@dataclass(frozen=True)
class World:
    """A dataset of 26 samples in four shards, one of them empty, and a teacher's cache of it with three views."""

    root: Path
    dataset: Dataset
    shards: str
    cache: str
    teacher: str
    student: str
    """24 wide at 32 pixels, the teacher 40 wide at 48."""

    def settings(self, out: Path | str, **changes: Any) -> Any:
        """A run of 8 steps of 6 samples from the cache."""
        from distill.settings import OptimiserSettings, RunSettings  # noqa: PLC0415

        optimiser = OptimiserSettings(**{"lr": 3e-3, "warmup": 3, **changes.pop("optimiser", {})})
        chosen = {
            "shards": self.shards,
            "cache": self.cache,
            "student": self.student,
            "steps": 8,
            "batch_size": 6,
            "log_every": 3,
            "checkpoint_every": 1,
            "optimiser": optimiser,
        }
        return RunSettings(**{**chosen, "out": str(out), **changes})


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
) -> World:
    from teacher_cache import ViewPolicy  # noqa: PLC0415
    from teacher_cache.building import BuildSettings, TeacherSpec, build_cache  # noqa: PLC0415

    root = tmp_path_factory.mktemp("world")
    dataset = make_dataset(root / "shards", (9, 0, 12, 5))
    teacher = save_teacher(root / "teacher", scale=30.0)
    settings = BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=(TeacherSpec(teacher, "teach"),),
        batch_size=64,
        views=3,
        policy=ViewPolicy(scale=(0.5, 1.0), flip=0.5),
    )
    build_cache(settings, InProcess())
    student = save_student(root / "student.json")
    return World(root, dataset, settings.shards, settings.cache, teacher, student)


@dataclass(frozen=True)
class Second:
    """23 samples in three shards, with keys of the world's but none of its images, and a cache by its teacher."""

    dataset: Dataset
    shards: str
    cache: str


@pytest.fixture(scope="session")
def second(world: World, make_dataset: Callable[..., Dataset]) -> Second:
    from teacher_cache import ViewPolicy  # noqa: PLC0415
    from teacher_cache.building import BuildSettings, TeacherSpec, build_cache  # noqa: PLC0415

    root = world.root / "second"
    dataset = make_dataset(root / "shards", (4, 13, 6), seed=7, name="second", keys="tiny")
    settings = BuildSettings(
        shards=str(dataset.folder),
        cache=str(root / "cache"),
        teachers=(TeacherSpec(world.teacher, "teach"),),
        batch_size=64,
        views=3,
        policy=ViewPolicy(scale=(0.5, 1.0), flip=0.5),
    )
    build_cache(settings, InProcess())
    return Second(dataset, settings.shards, settings.cache)


@pytest.fixture(scope="session")
def rich(world: World, save_teacher: Callable[..., str]) -> str:
    """A cache of the world's samples: teachers `teach` and, 24 wide like the student, `other`; captions `txt` and
    `json-key`; two views; and `texts`, the other teacher's captions alone."""
    from teacher_cache import ViewPolicy  # noqa: PLC0415
    from teacher_cache.building import BuildSettings, TeacherSpec, build_cache  # noqa: PLC0415
    from teacher_cache.captions import CaptionSource  # noqa: PLC0415

    other = save_teacher(world.root / "other", scale=20.0, seed=5, dim=24)
    common: dict[str, Any] = {"shards": world.shards, "cache": str(world.root / "rich"), "batch_size": 64}
    captions = (CaptionSource.parse("txt"), CaptionSource.parse("json:key"))
    both = (TeacherSpec(world.teacher, "teach"), TeacherSpec(other, "other"))
    policy = ViewPolicy(scale=(0.5, 1.0), flip=0.5)
    build_cache(BuildSettings(**common, teachers=both, views=2, policy=policy, captions=captions), InProcess())
    build_cache(BuildSettings(**common, teachers=(TeacherSpec(other, "texts"),), towers="text"), InProcess())
    return str(world.root / "rich")


@dataclass(frozen=True)
class Part:
    """16 samples in shards of 9, 3 and 4, and a cache without the second shard's."""

    dataset: Dataset
    cache: str
    whole: str
    student: str

    def settings(self, out: Path | str, **changes: Any) -> Any:
        """A run of 4 steps of 4 samples."""
        from distill.settings import RunSettings  # noqa: PLC0415

        chosen = {"shards": str(self.dataset.folder), "cache": self.cache, "student": self.student, "out": str(out)}
        return RunSettings(**{**chosen, "steps": 4, "batch_size": 4, "join_limit": 0.2, **changes})


@pytest.fixture(scope="session")
def part(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
) -> Part:
    from teacher_cache import ViewPolicy  # noqa: PLC0415
    from teacher_cache.building import BuildSettings, TeacherSpec, build_cache  # noqa: PLC0415

    root = tmp_path_factory.mktemp("part")
    dataset = make_dataset(root / "shards", (9, 3, 4))
    teachers = (TeacherSpec(save_teacher(root / "teacher", scale=30.0), "teach"),)
    for name in ("whole", "part"):
        settings = BuildSettings(
            shards=str(dataset.folder),
            cache=str(root / name),
            teachers=teachers,
            views=2,
            policy=ViewPolicy(scale=(0.5, 1.0), flip=0.5),
            batch_size=8,
        )
        build_cache(settings, InProcess())
    for record in (root / "part").rglob("_records/00001.*"):
        record.unlink()
    return Part(dataset, str(root / "part"), str(root / "whole"), save_student(root / "student.json"))
