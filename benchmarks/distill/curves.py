"""A student's loss over its steps: from the cache, beside the live teacher, and from a cache that rounds nothing."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.distill.contenders import Model
from benchmarks.distill.material import architecture, build, scene_material
from clip_models import load_model
from distill.settings import OptimiserSettings, RunSettings
from distill.training.live import LiveTeachers
from distill.training.run import Run
from teacher_cache.building import TeacherSpec

Losses = npt.NDArray[np.float64]
_SCALE = 100.0
"""The teacher's logit scale: that of CLIPs trained to the end, which makes the most of what rounding does."""
_LAST = 20
"""Steps whose mean stands for where a run ended."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How long the runs are, and on what: scenes of `pixels`, all of whose views are used once at most."""

    samples: int = 1024
    pixels: int = 64
    batch_size: int = 64
    steps: int = 208
    teacher_steps: int = 150

    @property
    def views(self) -> int:
        """As many as there are epochs: then the cache holds all that a live teacher would be asked."""
        return -(-self.steps // (self.samples // self.batch_size))


def measure(folder: Path, course: Course) -> dict[str, Any]:
    """The three runs' losses, step by step, and how far the two from a cache are from the one beside the teacher.

    They are one run but for the targets: same start, batches, views. The float32 cache shows what the order of sums in
    the teacher's forward does by itself, its batches being others in the build than in training.
    """
    shards, teacher = scene_material(folder, course.samples, course.pixels, course.teacher_steps)
    student = architecture(
        folder / "student.json", embed_dim=48, image_size=course.pixels, width=96, layers=2, context=24
    )
    runs = {}
    for dtype in ("float16", "float32"):
        cache = build(shards, folder / dtype, (TeacherSpec(teacher, "teacher"),), course.views, dtype)
        settings = RunSettings(
            shards=(shards,),
            out="unused",
            cache=(cache,),
            student=student,
            losses={"affinity": 1},
            teacher_scale=_SCALE,
            steps=course.steps,
            batch_size=course.batch_size,
            optimiser=OptimiserSettings(lr=1e-3, warmup=course.steps // 10),
        )
        runs[dtype] = Run(settings)
    beside = Run(settings)
    loaded = load_model(teacher)
    live = LiveTeachers([Model(loaded.model, loaded.config, beside.device, "fp32")], _SCALE, as_student=True)
    ways = {"online": beside, **runs}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    with ExitStack() as stack:
        feeds = [stack.enter_context(closing(run.loader.batches(0, course.steps))) for run in ways.values()]
        for batches in zip(*feeds, strict=True):
            for (name, run), batch in zip(ways.items(), batches, strict=True):
                told = live(batch) if run is beside else batch
                losses[name].append(float(run.step(told)["loss"]))
    online = np.array(losses["online"])
    return {
        "steps": course.steps,
        "views": course.views,
        "batch_size": course.batch_size,
        "samples": course.samples,
        "teacher_scale": _SCALE,
        "losses": losses,
        "learned": float(1 - online[-_LAST:].mean() / online[:_LAST].mean()),
        "differences": {dtype: _differences(np.array(losses[dtype]), online) for dtype in runs},
    }


def _differences(cached: Losses, online: Losses) -> dict[str, Any]:
    """Relative to the online run's loss at the same step."""
    relative = np.abs(cached - online) / online
    end = abs(cached[-_LAST:].mean() / online[-_LAST:].mean() - 1)
    return {
        "relative": relative.tolist(),
        "first": float(relative[0]),
        "mean": float(relative.mean()),
        "largest": float(relative.max()),
        "end": float(end),
    }
