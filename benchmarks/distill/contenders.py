"""The kinds of step that are compared: one student, one batch, and what it is told to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.distill.material import TEACHERS
from clip_models import ModelConfig, Normaliser, Precision, autocast, create_student
from distill.data.loader import Batch
from distill.settings import RunSettings
from distill.training.live import LiveTeachers
from distill.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of step: its losses; how many cached teachers it learns from; which architectures run beside it instead.

    Where teachers run beside the student, their embeddings replace those of as many cached ones. `options`: further
    settings of the run. `read`: how many samples it reads for each that it trains on.
    """

    losses: Mapping[str, float]
    cached: int = 0
    online: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    read: int = 1


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


LIT, CLIPA, ACED = "LiT from the cache", "CLIPA's first stage", "ACED, a fifth chosen"
METHODS = {
    AFFINITY: STORED[AFFINITY],
    LIT: Kind(losses={"contrastive": 1}, cached=1, options={"image_tower": "cache", "image_head": True}),
    CLIPA: Kind(losses={"affinity": 1}, cached=1, options={"image_size": 112, "context_length": 16}),
    ACED: Kind(losses={"affinity": 1}, cached=1, read=5),
}
"""Beside the ordinary distilled step of the same student, at the same batch size."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """What all contenders share."""

    shards: str
    cache: str
    views: int
    model: str = "ViT-T-16"
    precision: Precision = "fp32"


class Model:
    """A model as a teacher of batches: of the student's own pixels and token ids."""

    def __init__(self, model: Any, config: ModelConfig, device: torch.device, precision: Precision) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.logit_scale: float = float(model.logit_scale.exp())
        self.logit_bias: float | None = None
        self._normalise = Normaliser(config, device)
        self._device, self._precision = device, precision

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self._unit(self.model.encode_image, self._normalise(pixels.to(self._device, non_blocking=True)))

    def embed_texts(self, ids: Tensor) -> Tensor:
        return self._unit(self.model.encode_text, ids.to(self._device, non_blocking=True))

    @torch.no_grad()
    def _unit(self, encode: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        with autocast(self._device, self._precision):
            rows = encode(given)
        return F.normalize(rows.float(), dim=-1)


@dataclass
class Contender:
    """A kind of step, ready to take steps. `batches` is read as training reads it: the next ones are made meanwhile."""

    run: Run
    models: list[Model]

    def __post_init__(self) -> None:
        self.batches = self.run.loader.batches(0, self.run.steps)
        self._live = LiveTeachers(self.models, as_student=True)

    def told(self, batch: Batch) -> Batch:
        """The batch with what its teachers say: of the cache already, or now."""
        return self._live(batch) if self.models else batch

    def turn(self, steps: int) -> float:
        """Seconds that so many steps take, waiting for their batches included."""
        synchronise(self.run.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.run.step(self.told(next(self.batches)))
        synchronise(self.run.device)
        return time.perf_counter() - start

    def close(self) -> None:
        """End the threads that make batches."""
        self.batches.close()


def contender(kind: Kind, student: Student, batch_size: int) -> Contender:
    """A run of this kind that has taken no step yet, and the teachers it needs, with random weights."""
    settings = RunSettings(
        shards=(student.shards,),
        out="unused",
        student=student.model,
        cache=(student.cache,) if kind.cached else (),
        teachers=TEACHERS[: kind.cached],
        views=1 if kind.cached else student.views,
        losses=kind.losses,
        steps=1_000_000,
        batch_size=batch_size,
        precision=student.precision,
        super_batch=kind.read * batch_size if kind.read > 1 else None,
        **kind.options,
    )
    run = Run(settings)
    made = [create_student(name, seed) for seed, name in enumerate(kind.online)]
    return Contender(run, [Model(*one, run.device, student.precision) for one in made])


def synchronise(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
