"""What the user chooses for a pruning run."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from shards.errors import UserError
from shards.settings import option, settings

_FARTHEST = 0.1
"""How far from its target a stage may have ended; a student farther off is not that stage's."""


@settings
class PruneSettings:
    """Automatic weight inheritance (TinyCLIP): the share of prunable parameters that is to go, and how fast.

    `target`: relative to the full model that pruning began from, over the towers that are trained. It is asked for
    from `start` on, rising linearly over the first `ramp` steps; None is the share that the student has lost already.
    `lr` moves masks and multipliers. `removed`: units that earlier stages removed are "gone", or counted as in the
    "reference", where 4.7 % of each is still expected to be there: at its 50 % a stage then asks about 2 points more of
    what is left. For repeating the reference's schedule.
    """

    target: Annotated[
        float,
        option(
            "learn to leave out this share of the full model's attention and MLPs, and deliver the rest",
            "SHARE",
            flag="--prune",
            gt=0,
            lt=1,
        ),
    ]
    start: Annotated[
        float | None,
        option("begin to ask for this share (what the student has lost already)", "SHARE", flag="--prune-start", ge=0),
    ] = None
    ramp: Annotated[int, option("steps from that share to the whole", "N", flag="--prune-ramp", ge=0)] = 1000
    lr: Annotated[
        float, option("of the masks: at 0.02 none closes before step 300 or so", "RATE", flag="--prune-lr", gt=0)
    ] = 0.02
    removed: Annotated[
        Literal["gone", "reference"],
        option(
            "how to count what earlier stages removed; reference: as 4.7% still there, as in TinyCLIP's code, which "
            "then removes about 2 points more",
            flag="--prune-removed",
        ),
    ] = "gone"

    def __post_init__(self) -> None:
        if self.start is not None and self.start > self.target:
            raise UserError(
                f"sparsity cannot rise from {self.start} to {self.target}", do="Start from 0, or the stage before"
            )

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
