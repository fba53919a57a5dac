"""The optimiser: AdamW over decayed and undecayed parameters, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from distill.settings import OptimiserSettings


def make_adamw(modules: Iterable[nn.Module], settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over every parameter that takes a gradient; those with fewer than two dimensions are not decayed."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        # The fused kernel walks memory: a slice of a larger tensor would be updated beyond its rows, and moments read
        # back from a checkpoint would meet the wrong elements of a transposed one.
        parameter.data = parameter.data.contiguous()
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def learning_rate(step: int, steps: int, settings: OptimiserSettings) -> float:
    """The rate at `step` of `steps` (from 0): linear from lr/warmup up to lr, then half a cosine down to 0."""
    warmup = min(settings.warmup, steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    through = (step - warmup) / max(1, steps - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * through))
