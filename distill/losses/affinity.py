"""Affinity mimicking (TinyCLIP, Wu et al., ICCV 2023, arXiv 2309.12314, eq. 1 to 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import ALL, Embeddings, Loss
from distill.losses.contrastive import affinities


def affinity_loss(student: Embeddings, teacher: Embeddings, rows: slice = ALL) -> Tensor:
    """½[CE(τs·si·sxᵀ, sm(τt·ti·txᵀ)) + CE(τs·sx·siᵀ, sm(τt·tx·tiᵀ))], soft-target cross-entropies, means over `rows`.

    The widths of student and teacher may differ: only their B x B affinities meet. Returns a scalar.
    """
    s_text, s_image = affinities(student.image, student.text, student.logit_scale, rows)
    t_text, t_image = affinities(teacher.image, teacher.text, teacher.logit_scale, rows)
    return (F.cross_entropy(s_text, t_text.softmax(dim=1)) + F.cross_entropy(s_image, t_image.softmax(dim=1))) / 2


class AffinityMimicking(Loss):
    """`affinity_loss`, the mean over the teachers, each at its own logit scale (or the one the run pins it to)."""

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        return torch.stack([affinity_loss(student, teacher, rows) for teacher in teachers]).mean()
