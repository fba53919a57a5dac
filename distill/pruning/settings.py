"""What the user chooses for a pruning run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from shards import UserError

Removed = Literal["gone", "reference"]

_FARTHEST = 0.1
"""How far from its target a stage may have ended; a student farther off is not that stage's."""


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """Automatic weight inheritance (TinyCLIP): the share of prunable parameters that is to go, and how fast.

    `target`: relative to the full model that pruning began from, over the towers that are trained. It is asked for
    from `start` on, rising linearly over the first `ramp` steps; None is the share that the student has lost already.
    `lr` moves masks and multipliers. `removed`: units that earlier stages removed are "gone", or counted as in the
    "reference", where 4.7 % of each is still expected to be there: at its 50 % a stage then asks about 2 points more of
    what is left. For repeating the reference's schedule.
    """

    target: float
    start: float | None = None
    ramp: int = 1000
    lr: float = 0.02
    removed: Removed = "gone"

    def __post_init__(self) -> None:
        if self.removed not in get_args(Removed):
            raise UserError(
                f"removed units are to be counted {self.removed!r}", where="--prune-removed", do="Use gone or reference"
            )
        if not 0 < self.target < 1:
            raise UserError(f"the sparsity {self.target} is not between 0 and 1", where="--prune")
        if self.start is not None and not 0 <= self.start <= self.target:
            raise UserError(
                f"sparsity cannot rise from {self.start} to {self.target}", do="Start from 0, or the stage before"
            )
        if self.ramp < 0:
            raise UserError(f"a ramp of {self.ramp} steps is none", do="Give 0 or more")
        if not self.lr > 0:
            raise UserError(f"the masks' learning rate is {self.lr}, it must be positive")

    def begun_at(self, sparsity: float) -> PruneSettings:
        """These for a student that has lost this share already: `start` is filled in.

        Raises `UserError` if that leaves nothing to do, or if `start` is another model's.
        """
        if sparsity >= self.target:
            raise UserError(
                f"the student has lost {sparsity:.1%} of what can be pruned, and {self.target:.1%} are to go",
                where="--prune",
                do="Give a larger share: it is of the full model that the first stage began from",
            )
        if self.start is None:
            return replace(self, start=sparsity)
        if abs(self.start - sparsity) > _FARTHEST:
            raise UserError(
                f"the student has lost {sparsity:.1%} of what can be pruned, and is to go on from {self.start:.1%}",
                where="--prune-start",
                do="Give --initial the model/ of the stage before, or leave out --prune-start",
            )
        return self

    def target_at(self, step: int) -> float:
        """The sparsity asked for at `step` (from 0); without a `start`, of a student that has lost nothing."""
        start = self.start or 0.0
        through = min(1.0, step / self.ramp) if self.ramp else 1.0
        return start + (self.target - start) * through
