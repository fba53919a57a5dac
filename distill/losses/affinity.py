"""Affinity mimicking (TinyCLIP, Wu et al., ICCV 2023, eq. 1 to 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import Embeddings, Loss


def affinity_loss(student: Embeddings, teacher: Embeddings) -> Tensor:
    """½[CE(τs·si·sxᵀ, sm(τt·ti·txᵀ)) + CE(τs·sx·siᵀ, sm(τt·tx·tiᵀ))], cross-entropy with soft targets, mean over rows.

    The widths of student and teacher may differ: only their B x B affinities meet. Returns a scalar.
    """
    s_logits = student.logit_scale * student.image @ student.text.T
    t_logits = teacher.logit_scale * teacher.image @ teacher.text.T
    to_text = F.cross_entropy(s_logits, t_logits.softmax(dim=1))
    to_image = F.cross_entropy(s_logits.T, t_logits.T.softmax(dim=1))
    return (to_text + to_image) / 2


class AffinityMimicking(Loss):
    """`affinity_loss` at the teacher's own logit scale (or the one the run pins it to)."""

    def forward(self, student: Embeddings, teacher: Embeddings | None) -> Tensor:
        assert teacher is not None
        return affinity_loss(student, teacher)
