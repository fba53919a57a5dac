"""Augmented feature distillation (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: AFD; published weight 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.base import ALL, Embeddings, LossShape, mapped
from distill.losses.contrastive import contrastive_loss
from distill.losses.projecting import ProjectingLoss
from distill.losses.scale import LearnedScale


class Fusion(nn.Module):
    """`fi = norm(W_i[pi; ti])`, `fx = norm(W_x[px; tx])`: student and teacher side by side, in the student's width.

    Two linear maps with bias, each from twice the teacher's width, which is also the projected student's.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.image = nn.Linear(2 * teacher_dim, student_dim)
        self.text = nn.Linear(2 * teacher_dim, student_dim)

    def forward(self, image: Tensor, text: Tensor, teacher: Embeddings) -> tuple[Tensor, Tensor]:
        """`image`, `text`: (B, teacher_dim), the projected student's. Returns `fi`, `fx`, (B, student_dim) each."""
        fused_image = mapped(self.image, torch.cat([image, teacher.image], dim=1))
        fused_text = mapped(self.text, torch.cat([text, teacher.text], dim=1))
        return F.normalize(fused_image, dim=-1), F.normalize(fused_text, dim=-1)


class AugmentedFeature(ProjectingLoss):
    """½[CE(φ·fi·fxᵀ, I) + CE(φ·fx·fiᵀ, I)], a mean over `rows`, of the fused embeddings; the mean over the teachers.

    φ is trained, one a teacher, apart from the student's logit scale and from ICL's. `scale`: what it is,
    "exponentiated" or "reference", see `LearnedScale`.
    """

    def __init__(self, shape: LossShape, scale: str = "exponentiated") -> None:
        super().__init__(shape)
        self.fusions = nn.ModuleList(Fusion(shape.student_dim, dim) for dim in shape.teacher_dims)
        self.scales = nn.ModuleList(LearnedScale(scale, "afd's scale") for _ in shape.teacher_dims)

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        terms = []
        for ours, fuse, scale, teacher in zip(
            self.projected(student), self.fusions, self.scales, teachers, strict=True
        ):
            image, text = fuse(*ours, teacher)
            terms.append(contrastive_loss(image, text, scale(), rows))
        return torch.stack(terms).mean()
