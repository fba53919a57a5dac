"""The interface of a loss, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALL = slice(None)
"""Every row of the batch: what a single process answers for."""

_OFF_UNIT = 0.01
"""How far from 1 the norm of a row may be: bfloat16 rounds a unit row by less."""


@dataclass(frozen=True)
class Embeddings:
    """One global batch's embeddings: `image`, `text` (B, D) of unit norm, row i of both from sample i.

    `logit_scale` multiplies cosines (exp of the stored log; 100, not 4.6), `logit_bias` is added to them by the sigmoid
    losses: scalar tensors or floats. `raw_image`, `raw_text`: the same rows as the towers gave them, of any length;
    projections to a teacher's width see these. A teacher's are not needed. Of a model of one tower the other's rows are
    0 wide. Tensors are of any floating dtype, float64 included.

    Raises `ValueError` where a row is not of unit norm, unless `checked` is False: then nothing is looked at, and no
    device waited for.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor | float
    logit_bias: Tensor | float = 0.0
    raw_image: Tensor | None = None
    raw_text: Tensor | None = None
    checked: InitVar[bool] = True

    def __post_init__(self, checked: bool) -> None:
        if checked:
            _refuse_unless_unit(self.image, "image")
            _refuse_unless_unit(self.text, "text")

    @classmethod
    def of_raw(
        cls, image: Tensor, text: Tensor, logit_scale: Tensor | float, logit_bias: Tensor | float = 0.0
    ) -> Embeddings:
        """A student's, from what its towers gave: the unit rows come of these, with gradient."""
        unit = (F.normalize(image, dim=-1), F.normalize(text, dim=-1))
        return cls(*unit, logit_scale, logit_bias, image, text, checked=False)

    def with_rows(self, change: Callable[[Tensor], Tensor]) -> Embeddings:
        """These with all rows changed: moved, gathered from processes, some of them chosen. Norms must stay."""
        return replace(
            self,
            image=change(self.image),
            text=change(self.text),
            raw_image=None if self.raw_image is None else change(self.raw_image),
            raw_text=None if self.raw_text is None else change(self.raw_text),
            checked=False,
        )

    def only(self, samples: Tensor) -> Embeddings:
        """Those of some samples, a batch of their own."""
        return self.with_rows(lambda rows: rows[samples])


def _refuse_unless_unit(rows: Tensor, name: str) -> None:
    if rows.numel():
        norms = rows.detach().norm(dim=-1)
        wrong = ((norms - 1).abs() <= _OFF_UNIT).logical_not()
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"row {at} of `{name}` has the norm {float(norms[at]):.4g}, not 1: normalise the rows, or give what a "
                "student's towers returned to Embeddings.of_raw"
            )


@dataclass(frozen=True)
class Targets:
    """What the teachers said of a batch, or of one process's part of it.

    `teachers`: by caption set each teacher's embeddings, row i from sample i; empty without teachers. `present`: (B,)
    bool, the samples that every teacher knows, the rows of the others being open; None where all know every part whole.
    """

    teachers: Mapping[str, tuple[Embeddings, ...]] = field(default_factory=dict)
    present: Tensor | None = None

    def with_rows(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """As `Embeddings.with_rows`, of all teachers."""
        changed = {name: tuple(one.with_rows(change) for one in said) for name, said in self.teachers.items()}
        return replace(self, teachers=changed)


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

    def common(self, student: Embeddings, teachers: Sequence[Embeddings]) -> tuple[Any, ...]:  # noqa: ARG002
        """What `forward` takes after `rows` when it is called for one part of the rows after the other.

        It is for what no part can tell without a look at all rows: most losses need nothing of the kind.
        """
        return ()


def product(rows: Tensor, others: Tensor) -> Tensor:
    """rows·othersᵀ in the wider of their dtypes; nothing is copied where they are the same."""
    dtype = torch.promote_types(rows.dtype, others.dtype)
    return rows.to(dtype) @ others.to(dtype).T


def mapped(by: nn.Linear, rows: Tensor) -> Tensor:
    """`by(rows)` in the wider of their dtypes."""
    dtype = torch.promote_types(rows.dtype, by.weight.dtype)
    return F.linear(rows.to(dtype), by.weight.to(dtype), by.bias.to(dtype))


def squared_difference(rows: Tensor, others: Tensor) -> Tensor:
    """The mean of (rows − others)² over all elements, in the wider of their dtypes; 0-d."""
    dtype = torch.promote_types(rows.dtype, others.dtype)
    return F.mse_loss(rows.to(dtype), others.to(dtype))


def one_of(value: str, known: Sequence[str], what: str) -> str:
    """The value of a loss's option `what`. Raises `UserError` unless it is one of the `known`."""
    if value not in known:
        from shards import UserError  # noqa: PLC0415 - losses need nothing else of it, and it reads and writes Arrow

        raise UserError(f"{what} is {value!r}", where="losses", do=f"Use {' or '.join(known)}")
    return value
