"""The kinds of step that are compared: one student, one batch, and what it is told to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.distill.material import TEACHERS
from clip_models import ModelConfig, Normaliser, Precision, autocast, create_student
from distill.data.loader import Batch
from distill.losses import Embeddings
from distill.settings import RunSettings
from distill.training.run import Run
from distill.training.step import Targets


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of step: its losses; how many cached teachers it learns from; which architectures run beside it instead.

    Where teachers run beside the student, their embeddings replace those of as many cached ones.
    """

    losses: Mapping[str, float]
    cached: int = 0
    online: tuple[str, ...] = ()


_PLAIN = Kind(losses={"contrastive": 1})
PLAIN = "plain CLIP"
AFFINITY = "cached, affinity"
STORED = {
    PLAIN: _PLAIN,
    "plain CLIP again": _PLAIN,
    AFFINITY: Kind(losses={"affinity": 1}, cached=1),
    "cached, CLIP-KD sum": Kind(losses={"contrastive": 1, "crd": 1, "icl": 1, "fd": 2000}, cached=1),
    "cached, two teachers": Kind(losses={"reinforcement": 1}, cached=2),
}
"""The second plain one is the same thing again: how far its share is from 1 is what the shares are worth."""
ONLINE = {
    PLAIN: _PLAIN,
    "ViT-B/16 online": Kind(losses={"affinity": 1}, cached=1, online=("ViT-B-16",)),
    "ViT-L/14 online": Kind(losses={"affinity": 1}, cached=1, online=("ViT-L-14",)),
    "two ViT-L/14 online": Kind(losses={"reinforcement": 1}, cached=2, online=("ViT-L-14", "ViT-L-14")),
}


@dataclass(frozen=True, kw_only=True)
class Student:
    """What all contenders share."""

    shards: str
    cache: str
    views: int
    model: str = "ViT-T-16"
    precision: Precision = "fp32"


class LiveTeachers:
    """Teachers that embed each batch: the student's own pixels and tokens, which spares them any other work.

    `scale` stands for their own logit scales, as `RunSettings.teacher_scale` does.
    """

    def __init__(
        self,
        models: Sequence[tuple[Any, ModelConfig]],
        device: torch.device,
        precision: Precision,
        scale: float | None = None,
    ) -> None:
        self.models = [model.to(device).eval().requires_grad_(False) for model, _ in models]
        self._normalise = [Normaliser(config, device) for _, config in models]
        self._scales = [scale or float(model.logit_scale.exp()) for model, _ in models]
        self._device, self._precision = device, precision

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        """What `Run.cached_targets` gives, made now."""
        pixels = batch.images.to(self._device, non_blocking=True)
        both = zip(self.models, self._normalise, strict=True)
        images = [self._unit(model.encode_image, normalise(pixels)) for model, normalise in both]
        found = {}
        for captions, ids in batch.tokens.items():
            tokens = ids.to(self._device, non_blocking=True)
            texts = [self._unit(model.encode_text, tokens) for model in self.models]
            found[captions] = tuple(map(Embeddings, images, texts, self._scales))
        return Targets(found)

    def _unit(self, encode: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        with autocast(self._device, self._precision):
            rows = encode(given)
        return F.normalize(rows.float(), dim=-1)


@dataclass
class Contender:
    """A kind of step, ready to take steps. `batches` is read as training reads it: the next ones are made meanwhile."""

    run: Run
    live: LiveTeachers | None

    def __post_init__(self) -> None:
        self.targets = self.live.targets if self.live else self.run.cached_targets
        self.batches = self.run.loader.batches(0, self.run.steps)

    def turn(self, steps: int) -> float:
        """Seconds that so many steps take, waiting for their batches included."""
        synchronise(self.run.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.run.step(next(self.batches), self.targets)
        synchronise(self.run.device)
        return time.perf_counter() - start

    def close(self) -> None:
        """End the threads that make batches."""
        self.batches.close()


def contender(kind: Kind, student: Student, batch_size: int) -> Contender:
    """A run of this kind that has taken no step yet, and the teachers it needs, with random weights."""
    settings = RunSettings(
        shards=student.shards,
        out="unused",
        student=student.model,
        cache=student.cache if kind.cached else None,
        teachers=TEACHERS[: kind.cached],
        views=1 if kind.cached else student.views,
        losses=kind.losses,
        steps=1_000_000,
        batch_size=batch_size,
        precision=student.precision,
    )
    run = Run(settings)
    models = [create_student(name, seed) for seed, name in enumerate(kind.online)]
    return Contender(run, LiveTeachers(models, run.device, student.precision) if models else None)


def synchronise(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
