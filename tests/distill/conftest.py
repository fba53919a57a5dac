from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shards import Dataset, InProcess


@pytest.fixture(scope="session", autouse=True)
def _quiet(one_thread: None) -> None:
    """Every test here computes on one thread."""


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
    from teacher_cache.build import BuildSettings, TeacherSpec, build_cache  # noqa: PLC0415

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
