"""The optimiser: AdamW in groups, clipping, the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from distill.settings import OptimiserSettings


def parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Every parameter of these modules that takes a gradient."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def make_adamw(
    student: nn.Module,
    loss: nn.Module,
    settings: OptimiserSettings,
    others: Sequence[dict[str, Any]] = (),
    *,
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """AdamW over every parameter that takes a gradient; those with fewer than two dimensions are not decayed.

    `others`: groups with settings of their own, whose learning rate has no course. `sharded`: each process of the group
    has the moments of its share of the parameters, moves these, and sends them to the others (ZeRO's first stage,
    Rajbhandari et al., 2020, arXiv:1910.02054).
    """
    groups = []
    own = {id(parameter) for group in others for parameter in group["params"]}
    for module, decay in ((student, settings.weight_decay), (loss, settings.loss_weight_decay)):
        found = [parameter for parameter in parameters([module]) if id(parameter) not in own]
        for parameter in found:
            # The fused kernel walks memory: a slice of a larger tensor would be updated beyond its rows, and moments
            # read back from a checkpoint would meet the wrong elements of a transposed one.
            parameter.data = parameter.data.contiguous()
        groups += [
            {"params": [p for p in found if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in found if p.ndim < 2], "weight_decay": 0.0},
        ]
    every = [
        *({**group, "course": True} for group in groups if group["params"]),
        *({**group, "course": False} for group in others),
    ]
    how: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "fused": True}
    if sharded:
        return ZeroRedundancyOptimizer(every, torch.optim.AdamW, **how)
    return torch.optim.AdamW(every, **how)


def collect(optimiser: torch.optim.Optimizer) -> None:
    """Bring what processes have of a sharded optimiser to the first one, whose `state_dict` it is then; all call it."""
    if isinstance(optimiser, ZeroRedundancyOptimizer):
        optimiser.consolidate_state_dict(to=0)


def clip_gradients(found: Sequence[nn.Parameter], norm: float) -> torch.Tensor:
    """Scale the gradients down to the global `norm` (0: leave them); returns the norm before, 0-d."""
    return torch.nn.utils.clip_grad_norm_(found, norm or math.inf)


def make_average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and buffers: average = decay·average + (1 − decay)·weights.

    It begins as the weights after the first step that it sees. Counts are copied.
    """

    def update(average: Any, current: Any, _: Any) -> None:
        if torch.is_floating_point(average[0]):
            # Not torch's own `lerp`: of the infinities in an attention mask it makes NaN.
            torch._foreach_mul_(average, decay)
            torch._foreach_add_(average, current, alpha=1 - decay)
        else:
            torch._foreach_copy_(average, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
