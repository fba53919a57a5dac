"""The contrastive loss of CLIP (Radford et al., ICML 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import ALL, Embeddings, Loss, product


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float, rows: slice = ALL) -> Tensor:
    """½[CE(τ·si·sxᵀ, I) + CE(τ·sx·siᵀ, I)], each a mean over `rows` of the B rows.

    `image`, `text`: (B, D) of unit norm; `logit_scale`: the multiplier τ. Returns a scalar of their dtype.
    """
    own = torch.arange(len(image), device=image.device)[rows]
    to_text, to_image = affinities(image, text, logit_scale, rows)
    return (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2


def affinities(image: Tensor, text: Tensor, logit_scale: Tensor | float, rows: slice = ALL) -> tuple[Tensor, Tensor]:
    """τ·i·xᵀ and τ·x·iᵀ, of both the `rows`: (R, B) each."""
    to_text = product(logit_scale * image[rows], text)
    if rows == ALL:
        return to_text, to_text.T
    return to_text, product(logit_scale * text[rows], image)


class Contrastive(Loss):
    """`contrastive_loss` of the student; the teachers are not looked at."""

    needs_teacher = False

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:  # noqa: ARG002
        return contrastive_loss(student.image, student.text, student.logit_scale, rows)
