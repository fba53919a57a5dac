"""What a transformer tower has, layer by layer, and what of it counts as prunable; numbers alone, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PRUNED = "clipstill_pruned"
"""The key in `model_cfg`."""

TowerKind = Literal["vision", "text"]


@dataclass(frozen=True, kw_only=True)
class FullShape:
    """A tower's width, heads a layer and MLP units a layer before any pruning."""

    width: int
    heads: int
    mlp: int


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What a layer has."""

    heads: int
    mlp: int


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """A tower's residual width now, its layers now, and the tower that it was pruned from."""

    width: int
    layers: tuple[LayerShape, ...]
    full: FullShape

    @property
    def head_width(self) -> int:
        return self.full.width // self.full.heads

    @property
    def prunable(self) -> int:
        """Parameters of attention and MLPs, weights and biases; norms, embeddings and projections do not count."""
        return sum(_prunable(self.width, self.head_width * layer.heads, layer.mlp) for layer in self.layers)

    @property
    def full_prunable(self) -> int:
        """The same of the full tower: L(4d² + 4d + 2dm + d + m)."""
        return len(self.layers) * _prunable(self.full.width, self.full.width, self.full.mlp)


def _prunable(width: int, inner: int, mlp: int) -> int:
    attention = 3 * inner * (width + 1) + width * inner + width
    return attention + mlp * (width + 1) + width * mlp + width
