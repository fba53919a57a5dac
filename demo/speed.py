"""What a training step costs: plain CLIP, distilled from the cache, and distilled with the teacher running online.

All three train the same student on the same batches; they take turns, so that a machine that slows down slows all.
A step is timed from its first image decoded to the weights updated, on one thread of control.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass

import torch

from distill.data.loader import Batch
from distill.losses import Embeddings
from distill.settings import RunSettings
from distill.training.run import Run, TargetsOf
from distill.training.step import Targets
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
    online = Run(distilled, teacher_size=teacher.image_size)
    kinds: dict[str, tuple[Run, TargetsOf]] = {}
    for name, settings in (("baseline", baseline), ("cached", distilled)):
        run = Run(settings)
        kinds[name] = (run, run.cached_targets)
    kinds["online"] = (online, online_targets(teacher, distilled.teacher_scale))
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for step in range(_WARMUP + _ROUNDS):
        for name, (run, targets) in kinds.items():
            began = time.perf_counter()
            run.step(run.loader.batch(step), targets)
            if step >= _WARMUP:
                seconds[name].append(time.perf_counter() - began)
    size = distilled.batch_size
    return {
        name: asdict(StepSpeed(size / statistics.median(times), size / max(times), size / min(times)))
        for name, times in seconds.items()
    }


def online_targets(teacher: Teacher, scale: float | None) -> TargetsOf:
    """Targets from a live teacher that sees each batch's own views; needs a run made with `teacher_size`."""

    def targets(batch: Batch) -> Targets:
        assert batch.teacher_pixels is not None
        image = teacher.embed_images(torch.from_numpy(batch.teacher_pixels))
        texts = {captions: teacher.embed_texts(batch.captions[captions]) for captions in batch.captions}
        logit_scale = scale or teacher.logit_scale
        return Targets({captions: (Embeddings(image, text, logit_scale),) for captions, text in texts.items()})

    return targets
