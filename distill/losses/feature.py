"""Feature distillation (CLIP-KD, Yang et al., CVPR 2024: FD; published weight 2000)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.base import Embeddings, Loss, LossShape


def feature_loss(projected: Embeddings, teacher: Embeddings) -> Tensor:
    """MSE(pi, ti) + MSE(px, tx), each a mean over B·D, of unit-norm embeddings of equal width. Returns a scalar."""
    return F.mse_loss(projected.image, teacher.image) + F.mse_loss(projected.text, teacher.text)


class FeatureDistillation(Loss):
    """`feature_loss`; where the widths differ, two linear maps with bias take the student to the teacher's first.

    The projections are the loss's own parameters: trained with the student, not part of it afterwards.
    """

    def __init__(self, shape: LossShape) -> None:
        super().__init__(shape)
        assert shape.teacher_dim is not None
        same = shape.student_dim == shape.teacher_dim
        self.image_map = None if same else nn.Linear(shape.student_dim, shape.teacher_dim)
        self.text_map = None if same else nn.Linear(shape.student_dim, shape.teacher_dim)

    def forward(self, student: Embeddings, teacher: Embeddings | None) -> Tensor:
        assert teacher is not None
        if self.image_map is not None and self.text_map is not None:
            image = F.normalize(self.image_map(student.image), dim=-1)
            text = F.normalize(self.text_map(student.text), dim=-1)
            student = Embeddings(image, text, student.logit_scale)
        return feature_loss(student, teacher)
