"""Hard-concrete gates (Louizos et al., 2018, arXiv:1712.01312), as TinyCLIP has them (Wu et al., ICCV 2023).

A gate multiplies a unit. It has one learned number, log α: in training it is drawn anew at each step and may be 0, 1 or
between; in evaluation it is a function of log α alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clip_models.shapes import LayerShape, TowerShape

LOW, HIGH = -0.1, 1.1
EPSILON = 1e-6
TEMPERATURE = 2 / 3
INITIAL = 10.0
LIMIT = math.log(100)
SHARPNESS = 0.8


def drawn(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """The gates in training, in [0, 1], for `uniform` draws in (0, 1); differentiable. All of one shape."""
    stretched = torch.sigmoid((torch.logit(uniform) + log_alpha) / TEMPERATURE) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(gate > 0) in training, differentiable: 1 − clamp(σ(T·logit(1/12) − log α), ε, 1 − ε)."""
    at_zero = -LOW / (HIGH - LOW)
    closed = torch.sigmoid(TEMPERATURE * math.log(at_zero / (1 - at_zero)) - log_alpha)
    return 1 - closed.clamp(EPSILON, 1 - EPSILON)


def selected(log_alpha: Tensor, at_least: int = 0) -> Tensor:
    """The gates of one row (n,) in evaluation: σ(0.8·log α / T), the round(n − Σ P(open)) smallest of them 0.

    Of equal ones the first close. `at_least` so many stay open whatever Σ P(open) says.
    """
    gates = torch.sigmoid(SHARPNESS * log_alpha / TEMPERATURE)
    expected = len(gates) - float(open_probability(log_alpha).sum())
    closed = min(round(expected), len(gates) - at_least)
    gates[torch.argsort(log_alpha, stable=True)[: max(0, closed)]] = 0
    return gates


class Gates(nn.Module):
    """The gates of one tower: `hidden` (d,) for the residual stream, `heads` and `mlp` for all layers' in a row.

    `begin` opens them for a forward; `opened` then holds the values that every part of the tower multiplies with.
    `counts_removed`: what earlier stages removed is counted as the reference does, see `expected`.
    """

    counts_removed = False

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        self._heads = [layer.heads for layer in shape.layers]
        self._mlp = [layer.mlp for layer in shape.layers]
        self.hidden = _log_alpha(shape.width)
        self.heads = _log_alpha(sum(self._heads))
        self.mlp = _log_alpha(sum(self._mlp))
        self.uniform: list[Tensor] = []
        self._opened: Opened | None = None
        self.draw(torch.Generator().manual_seed(0))

    def draw(self, generator: torch.Generator) -> None:
        """Draw what decides the gates of the forwards to come, until the next draw. `generator` is the CPU's."""
        self.uniform = [
            torch.empty(row.shape).uniform_(EPSILON, 1 - EPSILON, generator=generator).to(row.device)
            for row in (self.hidden, self.heads, self.mlp)
        ]

    @property
    def opened(self) -> Opened:
        """What `begin` opened last."""
        assert self._opened is not None
        return self._opened

    def begin(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A hook before the module that first sees the residual stream: open the gates and mask the stream."""
        self._opened = opened = self.trained() if self.training else self.chosen()
        return (args[0] * opened.hidden.to(args[0].dtype), *args[1:])

    def trained(self) -> Opened:
        """The gates of this draw, with gradient."""
        hidden, heads, mlp = (
            drawn(row, uniform.to(row)) for row, uniform in zip(self._rows(), self.uniform, strict=True)
        )
        return Opened(hidden, list(torch.split(heads, self._heads)), list(torch.split(mlp, self._mlp)))

    @torch.no_grad()
    def chosen(self) -> Opened:
        """The gates in evaluation. One dimension of the stream at least stays."""
        heads, mlp = torch.split(self.heads, self._heads), torch.split(self.mlp, self._mlp)
        return Opened(selected(self.hidden, at_least=1), [selected(row) for row in heads], [selected(r) for r in mlp])

    def expected(self) -> Tensor:
        """How many prunable parameters are expected to stay: Σhidden·(Σheads·pph/d + 2·Σmlp); 0-d, with gradient.

        Sums are of P(open); d and pph = (4d² + 4d) // H are of the full tower. A unit that an earlier stage removed is
        gone. With `counts_removed` it is what it is in the reference: a gate at log α = −ln 100, where the clamp holds
        it from the first step's end on, and so 4.7 % open.
        """
        full, depth = self.shape.full, len(self.shape.layers)
        of_head = (4 * full.width**2 + 4 * full.width) // full.heads
        hidden, heads, mlp = (open_probability(row).sum() for row in self._rows())
        if self.counts_removed:
            each = open_probability(self.hidden.new_tensor(-LIMIT))
            hidden = hidden + (full.width - len(self.hidden)) * each
            heads = heads + (depth * full.heads - len(self.heads)) * each
            mlp = mlp + (depth * full.mlp - len(self.mlp)) * each
        return hidden * (heads * of_head / full.width + 2 * mlp)

    def clamp(self) -> None:
        """Keep log α within ±ln 100, as after every step."""
        with torch.no_grad():
            for row in self._rows():
                row.clamp_(-LIMIT, LIMIT)

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.heads, self.mlp

    def __getstate__(self) -> dict[str, object]:
        # Opened gates hang in a forward's graph, which cannot be copied.
        return {**self.__dict__, "_opened": None}


class Opened:
    """Gates as they multiply: `hidden` (d,), and for each layer `heads` (heads,) and `mlp` (units,)."""

    def __init__(self, hidden: Tensor, heads: list[Tensor], mlp: list[Tensor]) -> None:
        self.hidden, self.heads, self.mlp = hidden, heads, mlp
        self.kept = hidden.detach() > 0

    def shape(self, before: TowerShape) -> TowerShape:
        """What a tower of the shape `before` has left under these gates."""
        layers = tuple(
            LayerShape(heads=int((heads > 0).sum()), mlp=int((mlp > 0).sum()))
            for heads, mlp in zip(self.heads, self.mlp, strict=True)
        )
        return TowerShape(width=int(self.kept.sum()), layers=layers, full=before.full)


def _log_alpha(size: int) -> nn.Parameter:
    # A parameter of nothing never gets a gradient, for which processes would wait.
    return nn.Parameter(torch.full((size,), INITIAL), requires_grad=size > 0)
