"""The sigmoid loss (SigLIP, Zhai et al., ICCV 2023, arXiv 2303.15343), and the same with a teacher's targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import ALL, Embeddings, Loss, product


def pair_logits(of: Embeddings, rows: slice = ALL) -> Tensor:
    """τ·i·xᵀ + b of the images in `rows` with every text: (R, B)."""
    return product(of.logit_scale * of.image[rows], of.text) + of.logit_bias


def sigmoid_loss(student: Embeddings, rows: slice = ALL) -> Tensor:
    """−1/R Σ_ij log σ(y_ij·(τ·i·x + b)) over the images i in `rows` and all texts j; y = 1 where i = j, else −1.

    A sum over texts and a mean over images, as published: it does not shrink with the batch. Returns a scalar.
    """
    logits = pair_logits(student, rows)
    target = torch.zeros_like(logits)
    target[:, rows].fill_diagonal_(1)
    return _cross_entropy(logits, target)


def sigmoid_affinity_loss(student: Embeddings, teacher: Embeddings, rows: slice = ALL) -> Tensor:
    """−1/R Σ_ij [q log σ(z) + (1−q) log σ(−z)]: z is the student's τs·cos + bs, q = σ(τt·cos + bt) the teacher's.

    For a teacher trained with the sigmoid loss: without the bias that came of it, every pair would seem a match. The
    widths may differ. Returns a scalar.
    """
    return _cross_entropy(pair_logits(student, rows), pair_logits(teacher, rows).sigmoid())


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    dtype = torch.promote_types(logits.dtype, target.dtype)
    return F.binary_cross_entropy_with_logits(logits.to(dtype), target.to(dtype), reduction="sum") / len(logits)


class Sigmoid(Loss):
    """`sigmoid_loss` of the student; the teachers are not looked at."""

    needs_teacher = False
    uses_bias = True

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:  # noqa: ARG002
        return sigmoid_loss(student, rows)


class SigmoidAffinity(Loss):
    """`sigmoid_affinity_loss`, the mean over the teachers, each at its own logit scale and bias."""

    uses_bias = True

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        return torch.stack([sigmoid_affinity_loss(student, teacher, rows) for teacher in teachers]).mean()
