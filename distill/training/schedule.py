"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.settings import OptimiserSettings


def learning_rate(step: int, steps: int, settings: OptimiserSettings) -> float:
    """The rate at `step` of `steps` (from 0): linear from lr/warmup up to lr, then by the schedule."""
    warmup = settings.warmup_steps(steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    through = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "wsd":
        left = (steps - step) / max(1, round(settings.decay * steps))
        return settings.final_lr + (settings.lr - settings.final_lr) * min(1.0, left)
    return settings.final_lr + (settings.lr - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * through))
