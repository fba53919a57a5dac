"""What the user chooses for a pruning run."""

from __future__ import annotations

from dataclasses import dataclass

from shards import UserError


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """Automatic weight inheritance (TinyCLIP): the share of prunable parameters that is to go, and how fast.

    `target`: relative to the full model that pruning began from, over the towers that are trained. It is asked for
    from `start` on, rising linearly over the first `ramp` steps. `lr` moves masks and multipliers.
    """

    target: float
    start: float = 0.0
    ramp: int = 1000
    lr: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UserError(f"the sparsity {self.target} is not between 0 and 1", where="--prune")
        if not 0 <= self.start <= self.target:
            raise UserError(
                f"sparsity cannot rise from {self.start} to {self.target}", do="Start from 0, or the stage before"
            )
        if self.ramp < 0:
            raise UserError(f"a ramp of {self.ramp} steps is none", do="Give 0 or more")
        if not self.lr > 0:
            raise UserError(f"the masks' learning rate is {self.lr}, it must be positive")

    def target_at(self, step: int) -> float:
        """The sparsity asked for at `step` (from 0)."""
        through = min(1.0, step / self.ramp) if self.ramp else 1.0
        return self.start + (self.target - self.start) * through
