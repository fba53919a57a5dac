"""Gradient distillation (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: GD).

No weight is published for the intended form. The loss falls with 1/(B²·D), so a weight is for one batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distill.losses.base import ALL, Embeddings, LossShape, one_of, product, squared_difference
from distill.losses.projecting import ProjectingLoss

FORMS = ("intended", "reference")


def contrastive_gradients(
    queries: Tensor, keys: Tensor, scale: Tensor | float, rows: slice = ALL
) -> tuple[Tensor, Tensor]:
    """The gradients of CE(τ·q·kᵀ, I), a mean over B, by q and by k: (P − I)·k·τ/B and (P − I)ᵀ·q·τ/B.

    `queries`, `keys`: (B, D); P = sm(τ·q·kᵀ). Returns those of the `rows`, (R, D) each, themselves differentiable. The
    second takes a column of P from every row, so B x B matrices are built whatever the `rows`.
    """
    chances = product(scale * queries, keys).softmax(dim=1)
    factor = scale / len(keys)
    return factor * (chances[rows] @ keys - keys[rows]), factor * (chances.T[rows] @ queries - queries[rows])


def gradient_loss(student: Embeddings, teacher: Embeddings, rows: slice = ALL) -> Tensor:
    """Σ MSE(student's, teacher's) over the gradients of both directions by image and by text, four means over R·D.

    Student and teacher must be equally wide; each has its own logit scale. Returns a scalar.
    """
    terms = []
    for ours, theirs in (
        ((student.image, student.text), (teacher.image, teacher.text)),
        ((student.text, student.image), (teacher.text, teacher.image)),
    ):
        got = contrastive_gradients(*ours, student.logit_scale, rows)
        wanted = contrastive_gradients(*theirs, teacher.logit_scale, rows)
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

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        terms = []
        for (image, text), teacher in zip(self.projected(student), teachers, strict=True):
            ours = Embeddings(image, text, self._scale(student), checked=False)
            theirs = replace(teacher, logit_scale=self._scale(teacher), checked=False)
            terms.append(gradient_loss(ours, theirs, rows))
        return torch.stack(terms).mean()

    def _scale(self, of: Embeddings) -> Tensor | float:
        return of.logit_scale if self.form == "intended" else 1 / of.logit_scale
