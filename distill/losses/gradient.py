"""Gradient distillation (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: GD).

No weight is published for the intended form. The loss falls with 1/(B²·D), so a weight is for one batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from distill.losses.base import ALL, Embeddings, LossShape, one_of, product, squared_difference
from distill.losses.parts import parts_of, recomputed
from distill.losses.projecting import ProjectingLoss

FORMS = ("intended", "reference")


Sums = tuple[Tensor, Tensor]
"""Of a softmax's rows, (B,) each: the largest logit and Σ_j exp(logit_j − largest), what softmaxes are made of.

Apart, for their logarithm's sum would round chances at a scale of 100.
"""


def softmax_sums(queries: Tensor, keys: Tensor, scale: Tensor | float) -> Sums:
    """Of the rows of sm(τ·q·kᵀ)."""

    def of(rows: slice) -> Tensor:
        logits = product(scale * queries[rows], keys)
        largest = logits.detach().amax(dim=1)
        return torch.stack([largest, (logits - largest[:, None]).exp().sum(dim=1)])

    largest, total = torch.cat(recomputed(of, parts_of(len(queries))), dim=1).unbind()
    return largest.detach(), total


def contrastive_gradients(
    queries: Tensor, keys: Tensor, scale: Tensor | float, rows: slice = ALL, sums: Sums | None = None
) -> tuple[Tensor, Tensor]:
    """The gradients of CE(τ·q·kᵀ, I), a mean over B, by q and by k: (P − I)·k·τ/B and (P − I)ᵀ·q·τ/B.

    `queries`, `keys`: (B, D); P = sm(τ·q·kᵀ). Returns those of the `rows`, (R, D) each, themselves differentiable. The
    second takes a column of P from every row, so P is built whole, unless its `softmax_sums` are given.
    """
    queried = scale * queries
    if sums is None:
        whole = product(queried, keys).softmax(dim=1)
        chances, columns = whole[rows], whole[:, rows]
    else:
        largest, total = sums
        chances = product(queried[rows], keys).softmax(dim=1)
        columns = (product(queried, keys[rows]) - largest[:, None]).exp() / total[:, None]
    factor = scale / len(keys)
    return factor * (chances @ keys - keys[rows]), factor * (columns.T @ queries - queries[rows])


def images_first(of: Embeddings) -> tuple[Tensor, Tensor]:
    """Queries and keys of one direction."""
    return of.image, of.text


def texts_first(of: Embeddings) -> tuple[Tensor, Tensor]:
    """And of the other."""
    return of.text, of.image


def gradient_loss(
    student: Embeddings, teacher: Embeddings, rows: slice = ALL, sums: Sequence[Sequence[Sums]] | None = None
) -> Tensor:
    """Σ MSE(student's, teacher's) over the gradients of both directions by image and by text, four means over R·D.

    Student and teacher must be equally wide; each has its own logit scale. `sums`: for each direction `softmax_sums` of
    student and teacher. Returns a scalar.
    """
    terms = []
    for way, known in zip((images_first, texts_first), sums or ((None, None), (None, None)), strict=True):
        got, wanted = (
            contrastive_gradients(*way(of), of.logit_scale, rows, its)
            for of, its in zip((student, teacher), known, strict=True)
        )
        terms += [squared_difference(g, w) for g, w in zip(got, wanted, strict=True)]
    return torch.stack(terms).sum()


class GradientDistillation(ProjectingLoss):
    """`gradient_loss` of the projected student, the mean over the teachers.

    `form`: "intended", or "reference", which divides by the logit scales wherever the formula multiplies by them, as
    CLIP-KD's code does; its published weight of 1e8 is for that form.
    """

    def __init__(self, shape: LossShape, form: str = "intended") -> None:
        super().__init__(shape)
        self.form = one_of(form, FORMS, "gd's form")

    def forward(
        self,
        student: Embeddings,
        teachers: Sequence[Embeddings],
        rows: slice = ALL,
        sums: Sequence[Sequence[Sequence[Sums]] | None] = (),
    ) -> Tensor:
        pairs = zip(self._pairs(student, teachers), sums or [None] * len(teachers), strict=True)
        return torch.stack([gradient_loss(*pair, rows, known) for pair, known in pairs]).mean()

    def common(self, student: Embeddings, teachers: Sequence[Embeddings]) -> tuple[Any, ...]:
        """The softmaxes' denominators: each part of the rows would have to look at all B x B for them."""
        found = [
            [[softmax_sums(*way(of), of.logit_scale) for of in pair] for way in (images_first, texts_first)]
            for pair in self._pairs(student, teachers)
        ]
        return (found,)

    def _pairs(self, student: Embeddings, teachers: Sequence[Embeddings]) -> list[tuple[Embeddings, Embeddings]]:
        """The student in each teacher's width beside that teacher, at the scales that the form asks for."""
        return [
            (
                Embeddings(image, text, self._scale(student), checked=False),
                replace(teacher, logit_scale=self._scale(teacher), checked=False),
            )
            for (image, text), teacher in zip(self.projected(student), teachers, strict=True)
        ]

    def _scale(self, of: Embeddings) -> Tensor | float:
        return of.logit_scale if self.form == "intended" else 1 / of.logit_scale
