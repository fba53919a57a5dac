"""The interface of a loss, and the weighted sum that a run minimises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shards import UserError

ALL = slice(None)
"""Every row of the batch: what a single process answers for."""


@dataclass(frozen=True)
class Embeddings:
    """One global batch's embeddings: `image`, `text` (B, D) of unit norm, row i of both from sample i.

    `logit_scale` multiplies cosines (exp of the stored log; 100, not 4.6), `logit_bias` is added to them by the sigmoid
    losses: scalar tensors or floats. `raw_image`, `raw_text`: the same rows as the towers gave them, of any length;
    projections to a teacher's width see these. A teacher's are not needed.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float
    logit_bias: Tensor | float = 0.0
    raw_image: Tensor | None = None
    raw_text: Tensor | None = None

    @classmethod
    def of_raw(
        cls, image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float = 0.0
    ) -> Embeddings:
        """A student's, from what its towers gave: the unit rows come of these, with gradient."""
        return cls(F.normalize(image, dim=-1), F.normalize(text, dim=-1), logit_scale, logit_bias, image, text)

    def only(self, samples: Tensor) -> Embeddings:
        """Those of some samples, a batch of their own."""
        return replace(
            self,
            image=self.image[samples],
            text=self.text[samples],
            raw_image=None if self.raw_image is None else self.raw_image[samples],
            raw_text=None if self.raw_text is None else self.raw_text[samples],
        )


@dataclass(frozen=True)
class LossShape:
    """What a loss with parameters needs to know when it is made: the widths of student and teachers."""

    student_dim: int
    teacher_dims: tuple[int, ...] = ()


class Loss(nn.Module):
    """Base of every loss: called with the student's and each teacher's embeddings of one global batch.

    `rows` are those that this process answers for. The value is their mean, so that the mean over equal parts of a
    batch, one a process, is the loss of the whole batch, in value and gradient. `needs_teacher`: whether `teachers` may
    be empty. `uses_bias`: whether the student is to have a logit bias, as SigLIP has. Several teachers count alike: a
    loss is its mean over them.
    """

    needs_teacher: ClassVar[bool] = True
    uses_bias: ClassVar[bool] = False

    def __init__(self, shape: LossShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        raise NotImplementedError


def product(rows: Tensor, others: Tensor) -> Tensor:
    """rows·othersᵀ in the wider of their dtypes; nothing is copied where they are the same."""
    dtype = torch.promote_types(rows.dtype, others.dtype)
    return rows.to(dtype) @ others.to(dtype).T


def mapped(by: nn.Linear, rows: Tensor) -> Tensor:
    """`by(rows)` in the wider of their dtypes."""
    dtype = torch.promote_types(rows.dtype, by.weight.dtype)
    return F.linear(rows.to(dtype), by.weight.to(dtype), by.bias.to(dtype))


def one_of(value: str, known: Sequence[str], what: str) -> str:
    """The value of a loss's option `what`. Raises `UserError` unless it is one of the `known`."""
    if value not in known:
        raise UserError(f"{what} is {value!r}", where="losses", do=f"Use {' or '.join(known)}")
    return value


@dataclass(frozen=True)
class Pair:
    """A batch with one of its caption sets: what the student made of it, and each teacher.

    `taught`: where the teachers know only some of the batch, which samples (T,) int64 ascending their T rows are of.
    """

    student: Embeddings
    teachers: tuple[Embeddings, ...] = ()
    taught: Tensor | None = None


class WeightedSum(nn.Module):
    """Σ weight · loss over losses, the mean over caption sets; returns it and each unweighted term, detached, by name.

    Losses that project the student share the projections of the first of them, as in CLIP-KD, whose losses all see the
    same projected student: its parameters are listed once, under that loss's name.
    """

    def __init__(self, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        projecting = [loss for loss in losses.values() if hasattr(loss, "projections")]
        for loss in projecting[1:]:
            del loss.projections
            # A plain attribute, no child module: else a state dict would hold the same tensors under two names.
            loss.__dict__["projections"] = projecting[0].projections

    def forward(
        self, pairs: Mapping[str, Pair], weights: Mapping[str, float], rows: slice = ALL
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`pairs` by caption set. A term is named after its loss; of several caption sets each has one, LOSS/SET."""
        terms, weighted = {}, []
        for name, loss in self.losses.items():
            found = []
            for captions, pair in pairs.items():
                taught = pair.taught if getattr(loss, "needs_teacher", True) else None
                term = loss(pair.student, pair.teachers, rows) if taught is None else _partly(loss, pair, taught, rows)
                found.append(term)
                if len(pairs) > 1:
                    terms[f"{name}/{captions}"] = term.detach()
            mean = torch.stack(found).mean()
            terms[name] = mean.detach()
            weighted.append(weights[name] * mean)
        return torch.stack(weighted).sum(), terms


def _partly(loss: nn.Module, pair: Pair, taught: Tensor, rows: slice) -> Tensor:
    """The loss of the taught samples, as a batch of their own, these rows' share of it."""
    start, stop, _ = rows.indices(len(pair.student.image))
    bounds = torch.tensor([start, stop], device=taught.device)
    first, last = torch.searchsorted(taught, bounds).tolist()
    if first == last:
        # Nothing was said of these rows, but a gradient is still due to all that the others' rows reach: zero.
        student = pair.student
        reached = student.image.sum() + student.text.sum() + student.logit_scale + student.logit_bias
        return 0 * sum((parameter.sum() for parameter in loss.parameters()), start=reached)
    share: Tensor = loss(pair.student.only(taught), pair.teachers, slice(first, last))
    # Processes have unequal parts of the taught: their mean has to weigh them by how many they have.
    parts = len(pair.student.image) / (stop - start)
    weight: float = (last - first) * parts / len(taught)
    return share * weight
