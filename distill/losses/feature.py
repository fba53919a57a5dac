"""Feature distillation (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: FD; published weight 2000).

Masked feature distillation (MFD) is the same loss, of a student whose image tower sees a random part of its patches:
that is the trainer's doing, the teacher sees them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.losses.base import ALL, Embeddings, squared_difference
from distill.losses.projecting import ProjectingLoss


def feature_loss(image: Tensor, text: Tensor, teacher: Embeddings, rows: slice = ALL) -> Tensor:
    """MSE(pi, ti) + MSE(px, tx), each a mean over R·D of the `rows`.

    `image`, `text`: (B, D) of unit norm, the student's embeddings taken to the teacher's width. Returns a scalar.
    """
    return squared_difference(image[rows], teacher.image[rows]) + squared_difference(text[rows], teacher.text[rows])


class FeatureDistillation(ProjectingLoss):
    """`feature_loss` of the projected student, the mean over the teachers."""

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        pairs = zip(self.projected(student), teachers, strict=True)
        return torch.stack([feature_loss(*ours, teacher, rows) for ours, teacher in pairs]).mean()
