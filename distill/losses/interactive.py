"""Interactive contrastive learning (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732: ICL; published weight 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.base import ALL, Embeddings, LossShape, product
from distill.losses.projecting import ProjectingLoss
from distill.losses.scale import LearnedScale


def interactive_loss(
    image: Tensor, text: Tensor, teacher: Embeddings, scale: Tensor | float, rows: slice = ALL
) -> Tensor:
    """½[CE(c·pi·txᵀ, I) + CE(c·px·tiᵀ, I)], means over `rows`: the student's images must find the teacher's texts.

    `image`, `text`: (B, D) of unit norm, the student's embeddings taken to the teacher's width; `scale`: the multiplier
    c, neither the student's nor the teacher's. Returns a scalar.
    """
    own = torch.arange(len(image), device=image.device)[rows]
    to_text = product(scale * image[rows], teacher.text)
    to_image = product(scale * text[rows], teacher.image)
    return (F.cross_entropy(to_text, own) + F.cross_entropy(to_image, own)) / 2


class InteractiveContrastive(ProjectingLoss):
    """`interactive_loss` of the projected student, the mean over the teachers, with a trained c for each.

    `scale`: what c is, "exponentiated" or "reference", see `LearnedScale`.
    """

    def __init__(self, shape: LossShape, scale: str = "exponentiated") -> None:
        super().__init__(shape)
        self.scales = nn.ModuleList(LearnedScale(scale, "icl's scale") for _ in shape.teacher_dims)

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        terms = []
        for ours, scale, teacher in zip(self.projected(student), self.scales, teachers, strict=True):
            terms.append(interactive_loss(*ours, teacher, scale(), rows))
        return torch.stack(terms).mean()
