"""Feature distillation (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: FD; published weight 2000).

Masked feature distillation (MFD) is the same loss, of a student whose image tower sees a random part of its patches:
that is the trainer's doing, the teacher sees them all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.base import ALL, Embeddings, Loss, LossShape, mapped


def feature_loss(image: Tensor, text: Tensor, teacher: Embeddings, rows: slice = ALL) -> Tensor:
    """MSE(pi, ti) + MSE(px, tx), each a mean over R·D of the `rows`.

    `image`, `text`: (B, D) of unit norm, the student's embeddings taken to the teacher's width. Returns a scalar.
    """
    return F.mse_loss(image[rows], teacher.image[rows]) + F.mse_loss(text[rows], teacher.text[rows])


class Projection(nn.Module):
    """The student's embeddings in a teacher's width, of unit norm; without parameters where the widths are equal.

    Two linear maps with bias (CLIP-KD), of the student's *raw* embeddings, as in every published run: of unit vectors a
    fresh map would be mostly its bias, and unrelated samples lie near each other. Parameters of the loss that holds it:
    trained with the student, not part of it afterwards.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        same = student_dim == teacher_dim
        self.image = None if same else nn.Linear(student_dim, teacher_dim)
        self.text = None if same else nn.Linear(student_dim, teacher_dim)

    def forward(self, student: Embeddings) -> tuple[Tensor, Tensor]:
        """`image` and `text`, (B, teacher_dim) each. Raises `ValueError` if raw embeddings are needed and not there."""
        if self.image is None or self.text is None:
            return student.image, student.text
        if student.raw_image is None or student.raw_text is None:
            raise ValueError(
                f"a projection to {self.image.out_features} dimensions maps the student's raw embeddings, and these "
                "Embeddings hold unit rows alone: make them with Embeddings.of_raw"
            )
        image, text = mapped(self.image, student.raw_image), mapped(self.text, student.raw_text)
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1)


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
