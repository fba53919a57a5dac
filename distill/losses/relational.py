"""Contrastive relational distillation (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: CRD; published weight 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import ALL, Embeddings, Loss
from distill.losses.contrastive import affinities


def relational_loss(student: Embeddings, teacher: Embeddings, rows: slice = ALL) -> Tensor:
    """½[KL(sm(τt·ti·txᵀ) ‖ sm(τs·si·sxᵀ)) + KL(sm(τt·tx·tiᵀ) ‖ sm(τs·sx·siᵀ))], each a mean over `rows`.

    The student is not projected, so the widths may differ. It is `affinity_loss` less the teacher's own entropy: its
    gradients are the same, its value is 0 where the student says what the teacher says. Returns a scalar.
    """
    ours = affinities(student.image, student.text, student.logit_scale, rows)
    theirs = affinities(teacher.image, teacher.text, teacher.logit_scale, rows)
    to_text, to_image = (
        F.kl_div(s.log_softmax(dim=1), t.log_softmax(dim=1), reduction="batchmean", log_target=True)
        for s, t in zip(ours, theirs, strict=True)
    )
    return (to_text + to_image) / 2


class RelationalDistillation(Loss):
    """`relational_loss`, the mean over the teachers."""

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        return torch.stack([relational_loss(student, teacher, rows) for teacher in teachers]).mean()
