"""The interface of a loss, and the weighted sum that a run minimises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Embeddings:
    """One global batch's embeddings: `image`, `text` (B, D) of unit norm, row i of both from sample i.

    `logit_scale` multiplies cosines (exp of the stored log; 100, not 4.6): a scalar tensor or float. `rows`, of a
    teacher that knows only some of the batch: which samples (T,) int64 its T rows are of; None if it knows all.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float
    rows: Tensor | None = None

    def only(self, rows: Tensor | None) -> Embeddings:
        """Those of some samples, a batch of their own; all of them for None."""
        return self if rows is None else Embeddings(self.image[rows], self.text[rows], self.logit_scale)


@dataclass(frozen=True)
class LossShape:
    """What a loss with parameters needs to know when it is made: the widths of the embeddings."""

    student_dim: int
    teacher_dim: int | None


class Loss(nn.Module):
    """Base of every loss. `needs_teacher`: whether `teacher` must be given."""

    needs_teacher: ClassVar[bool] = True

    def __init__(self, shape: LossShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, student: Embeddings, teacher: Embeddings | None) -> Tensor:
        raise NotImplementedError


class WeightedSum(nn.Module):
    """Σ weight · loss; returns the sum and each unweighted term, detached, by name."""

    def __init__(self, losses: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, student: Embeddings, teacher: Embeddings | None) -> tuple[Tensor, dict[str, Tensor]]:
        taught = student if teacher is None else student.only(teacher.rows)
        terms = {}
        for name, loss in self.losses.items():
            of = taught if getattr(loss, "needs_teacher", True) else student
            # A batch without a single taught sample has nothing to say, but still a gradient: zero.
            terms[name] = loss(of, teacher) if len(of.image) else 0 * of.image.sum()
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}
