"""What a training step costs: plain CLIP, distilled from the cache, and distilled with the teacher running online.

All three train the same student on the same batches; they take turns, so that a machine that slows down slows all.
A step is timed from its first image decoded to the weights updated, on one thread of control.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from distill.settings import RunSettings
from distill.training.live import LiveTeachers
from distill.training.run import Run
from teacher_cache.teachers import Teacher

_WARMUP, _ROUNDS = 2, 7


@dataclass(frozen=True)
class StepSpeed:
    """Images a second of one kind of step: median, lowest and highest over the rounds."""

    median: float
    low: float
    high: float


def measure_steps(baseline: RunSettings, distilled: RunSettings, teacher: Teacher) -> dict[str, dict[str, float]]:
    """Time `baseline`, `cached` and `online` steps; returns each one's `StepSpeed` as a dict."""
    scale = distilled.teacher_scale
    live = LiveTeachers([teacher], None if isinstance(scale, Mapping) else scale)
    kinds: dict[str, tuple[Run, LiveTeachers | None]] = {
        "baseline": (Run(baseline), None),
        "cached": (Run(distilled), None),
        "online": (Run(distilled, teacher_size=teacher.image_size), live),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for step in range(_WARMUP + _ROUNDS):
        for name, (run, beside) in kinds.items():
            began = time.perf_counter()
            batch = run.loader.batch(step)
            run.step(beside(batch) if beside else batch)
            if step >= _WARMUP:
                seconds[name].append(time.perf_counter() - began)
    size = distilled.batch_size
    return {
        name: asdict(StepSpeed(size / statistics.median(times), size / max(times), size / min(times)))
        for name, times in seconds.items()
    }
