"""What the user chooses for a training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clip_models import Precision
from distill.losses import LOSSES
from shards import UserError
from teacher_cache.join import Join, Policy


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """AdamW with linear warm-up and cosine decay to 0 (TinyCLIP's values).

    `warmup` in steps; weight decay is not applied to tensors of fewer than two dimensions (norms, biases, scales).
    `clip_norm`: the global gradient norm is cut to it, 0 for no clipping.
    """

    lr: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float = 5.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            _refuse_unless(getattr(self, name) > 0, name, getattr(self, name), "positive")
        for name in ("warmup", "weight_decay", "clip_norm"):
            _refuse_unless(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _refuse_unless(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A whole training run; everything in it is written to the run folder and compared on resume.

    `shards`, `cache`, `student` as in `Dataset.open`, `TeacherCache.open`, `create_student`. `losses` maps names of
    `LOSSES` to weights. Length in `steps`, or else in `epochs`. `views` only without a cache (a cache brings its
    own). `join` and `join_limit` say what becomes of samples that the cache does not have, as in
    `teacher_cache.join.Join`. `teacher_scale`, `student_scale`: pin a logit scale to this multiplier; None leaves the
    teacher's own, and lets the student's be learned. `precision`: autocast of the student's forward; fp16 scales the
    loss.
    """

    shards: str
    out: str
    student: str
    cache: str | None = None
    teacher_name: str | None = None
    join: Policy = "error"
    join_limit: float = 0.01
    losses: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 256
    views: int = 1
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    teacher_scale: float | None = None
    student_scale: float | None = None
    precision: Precision = "fp32"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if "://" in self.out:
            raise UserError("a run's folder must be on a local disk", where=self.out, do="Give a path")
        for name, weight in self.losses.items():
            _refuse_unless(0 < weight < math.inf, f"the weight of {name}", weight, "positive and finite")
            if name not in LOSSES:
                raise UserError(f"there is no loss {name!r}", where="--loss", do=f"Use {', '.join(LOSSES)}")
            if LOSSES[name].needs_teacher and self.cache is None:
                raise UserError(f"the loss {name!r} needs a teacher", where="--loss", do="Give --cache")
        if (self.steps is None) == (self.epochs is None):
            raise UserError("a run's length is needed, once", do="Give --steps or --epochs")
        lengths = ("steps", "epochs", "batch_size", "views", "log_every", "checkpoint_every")
        for name in (*lengths, "teacher_scale", "student_scale"):
            value = getattr(self, name)
            _refuse_unless(value is None or 0 < value < math.inf, name, value, "positive and finite")
        Join(policy=self.join, limit=self.join_limit)
        if self.cache is None and self.join != "error":
            raise UserError(f"{self.join!r} joins shards with a cache, and there is none", do="Give --cache")
        if self.cache is None and self.teacher_scale is not None:
            raise UserError("a teacher's scale without a teacher", where="--teacher-scale", do="Give --cache")
        if self.cache is not None and self.views != 1:
            raise UserError(f"{self.views} views were asked for, but a cache brings its own", do="Leave out --views")

    def weights(self) -> dict[str, float]:
        """The losses with the default filled in: affinity mimicking from a cache, else plain CLIP."""
        return dict(self.losses) or {"affinity" if self.cache else "contrastive": 1.0}

    def identity(self) -> dict[str, Any]:
        """What decides the trained weights, apart from data, cache and student, which a run compares by content.

        What only affects logging is left out.
        """
        fields = asdict(self)
        for name in ("shards", "cache", "teacher_name", "student", "out", "log_every", "checkpoint_every"):
            del fields[name]
        fields["losses"] = self.weights()
        fields["optimiser"]["betas"] = list(self.optimiser.betas)
        return fields


def _refuse_unless(fine: bool, name: str, value: object, must: str) -> None:
    if not fine:
        raise UserError(f"{name} is {value}, it must be {must}")
