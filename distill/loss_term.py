"""A loss of a run: its weight, or the weight's course, and the options that its constructor takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from distill.losses import LOSSES
from shards.errors import UserError
from shards.settings import settings


@settings
class LossTerm:
    """A loss's weight, and what its constructor is given.

    `weight` is a number, or its course over the run: points (through, weight) with `through` ascending from 0 (start)
    to 1 (end), straight lines between them and level beyond.
    """

    weight: float | tuple[tuple[float, float], ...] = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def at(self, through: float) -> float:
        """The weight when the fraction `through` of the run is done."""
        if isinstance(self.weight, int | float):
            return float(self.weight)
        before = self.weight[0]
        for point in self.weight:
            if through < point[0]:
                share = (through - before[0]) / (point[0] - before[0]) if point[0] > before[0] else 1.0
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]

    def check(self, name: str) -> None:
        """Raises `UserError` unless it can be a term of the loss `name`. Torch is loaded only to look at options."""
        if name not in LOSSES:
            raise UserError(f"there is no loss {name!r}", where="--loss", do=f"Use {', '.join(LOSSES)}")
        if isinstance(self.weight, int | float):
            fine, must = self.weight > 0, "positive"
        else:
            through = [point[0] for point in self.weight]
            weights = [point[1] for point in self.weight]
            fine = through == sorted(through) and all(0 <= x <= 1 for x in through)
            fine = fine and min(weights, default=0) >= 0 and any(weights)
            must = "points of ascending 0 to 1 and weights of 0 up"
        if not fine:
            raise UserError(f"the weight of {name} is {self.weight}, it must be {must}")
        if self.options:
            self._check_options(name)

    def _check_options(self, name: str) -> None:
        from distill.losses import LossShape  # noqa: PLC0415 - brings torch

        known = [name for name in inspect.signature(LOSSES[name]).parameters if name != "shape"]
        for given in self.options:
            if given not in known:
                raise UserError(f"the loss {name} has no option {given!r}", do=f"It takes {', '.join(known) or 'none'}")
        LOSSES[name](LossShape(8, (8,)), **self.options)
