"""The contrastive loss of CLIP (Radford et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import Embeddings, Loss


def contrastive_loss(image: Tensor, text: Tensor, logit_scale: Tensor | float) -> Tensor:
    """½[CE(τ·si·sxᵀ, I) + CE(τ·sx·siᵀ, I)], each a mean over the B rows.

    `image`, `text`: (B, D) of unit norm; `logit_scale`: the multiplier τ. Returns a scalar of their dtype.
    """
    logits = logit_scale * image @ text.T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class Contrastive(Loss):
    """`contrastive_loss` of the student; the teacher is not looked at."""

    needs_teacher = False

    def forward(self, student: Embeddings, teacher: Embeddings | None) -> Tensor:  # noqa: ARG002
        return contrastive_loss(student.image, student.text, student.logit_scale)
