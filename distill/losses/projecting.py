"""The student in a teacher's width: what the losses of CLIP-KD that compare rows have in common."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.base import Embeddings, Loss, LossShape, mapped


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


class ProjectingLoss(Loss):
    """Base of the losses that see the student in each teacher's width, through maps that are trained with it."""

    def __init__(self, shape: LossShape) -> None:
        super().__init__(shape)
        self.projections: nn.ModuleList | None = nn.ModuleList(
            Projection(shape.student_dim, dim) for dim in shape.teacher_dims
        )
        self._owner: tuple[ProjectingLoss, ...] = ()

    def project_as(self, other: ProjectingLoss) -> None:
        """See the student through another loss's maps from now on: they stay that one's, and these have an end."""
        self.projections = None
        # In a tuple it is no child: its parameters are listed once.
        self._owner = (other,)

    def projected(self, student: Embeddings) -> list[tuple[Tensor, Tensor]]:
        """The student's `image` and `text` in each teacher's width, (B, teacher_dim) of unit norm."""
        maps = (self._owner[0] if self._owner else self).projections
        assert maps is not None, "whose maps these are has them"
        return [project(student) for project in maps]
