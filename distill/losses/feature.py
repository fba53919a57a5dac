"""Feature distillation (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: FD; published weight 2000).

Masked feature distillation (MFD) is the same loss, of a student whose image tower sees a random part of its patches:
that is the trainer's doing, the teacher sees them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.base import ALL, Embeddings, Loss, LossShape


def feature_loss(image: Tensor, text: Tensor, teacher: Embeddings, rows: slice = ALL) -> Tensor:
    """MSE(pi, ti) + MSE(px, tx), each a mean over R·D of the `rows`.

    `image`, `text`: (B, D) of unit norm, the student's embeddings taken to the teacher's width. Returns a scalar.
    """
    return F.mse_loss(image[rows], teacher.image[rows]) + F.mse_loss(text[rows], teacher.text[rows])


class Projection(nn.Module):
    """The student's embeddings in a teacher's width, of unit norm; without parameters where the widths are equal.

    Two linear maps with bias (CLIP-KD). Parameters of the loss that holds it: trained with the student, not part of it
    afterwards.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        same = student_dim == teacher_dim
        self.image = nn.Identity() if same else nn.Linear(student_dim, teacher_dim)
        self.text = nn.Identity() if same else nn.Linear(student_dim, teacher_dim)
        self._same = same

    def forward(self, student: Embeddings) -> tuple[Tensor, Tensor]:
        """`image` and `text`, (B, teacher_dim) each."""
        image, text = self.image(student.image), self.text(student.text)
        return (image, text) if self._same else (F.normalize(image, dim=-1), F.normalize(text, dim=-1))


class FeatureDistillation(Loss):
    """`feature_loss` of the projected student, the mean over the teachers."""

    def __init__(self, shape: LossShape) -> None:
        super().__init__(shape)
        self.projections = nn.ModuleList(Projection(shape.student_dim, dim) for dim in shape.teacher_dims)

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        terms = []
        for project, teacher in zip(self.projections, teachers, strict=True):
            image, text = project(student)
            terms.append(feature_loss(image, text, teacher, rows))
        return torch.stack(terms).mean()
