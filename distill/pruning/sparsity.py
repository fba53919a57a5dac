"""How sparse the towers are expected to be, and the penalty that drives them to a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.pruning.gates import Gates


def expected_sparsity(towers: Sequence[Gates]) -> Tensor:
    """1 − expected parameters / those of the full towers, pooled over the towers; 0-d, with gradient."""
    expected = torch.stack([gates.expected() for gates in towers]).sum()
    return 1 - expected / sum(gates.shape.full_prunable for gates in towers)


def sparsity_penalty(expected: Tensor, target: float, multipliers: Tensor) -> Tensor:
    """λ1·gap + λ2·gap², gap = max(target − expected, 0); `multipliers` (2,) are λ1 and λ2."""
    gap = torch.relu(target - expected)
    return multipliers[0] * gap + multipliers[1] * gap.square()
