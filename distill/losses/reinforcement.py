"""Dataset reinforcement (MobileCLIP, Vasu et al., CVPR 2024, arXiv 2311.17049), its distillation term."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import ALL, Embeddings, Loss
from distill.losses.contrastive import affinities


def reinforcement_loss(student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
    """½[CE(τs·si·sxᵀ, mean_k sm(τk·ti_k·tx_kᵀ)) + the same text→image], each a mean over `rows`.

    Widths may differ; each teacher has its own logit scale τk. Cross-entropy is linear in its target, so this is the
    mean of `affinity_loss` over the teachers, at the price of one cross-entropy. Returns a scalar.
    """
    to_text, to_image = affinities(student.image, student.text, student.logit_scale, rows)
    # Added up teacher by teacher: of large batches not every teacher's matrix fits.
    dtype = functools.reduce(torch.promote_types, (teacher.image.dtype for teacher in teachers), to_text.dtype)
    text_target, image_target = torch.zeros_like(to_text, dtype=dtype), torch.zeros_like(to_image, dtype=dtype)
    for teacher in teachers:
        t_text, t_image = affinities(teacher.image, teacher.text, teacher.logit_scale, rows)
        text_target += t_text.softmax(dim=1) / len(teachers)
        image_target += t_image.softmax(dim=1) / len(teachers)
    return (F.cross_entropy(to_text, text_target) + F.cross_entropy(to_image, image_target)) / 2


class Reinforcement(Loss):
    """`reinforcement_loss`. MobileCLIP adds `contrastive`, 0 and 1 for small students, 0.25 and 0.75 for large."""

    def forward(self, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
        return reinforcement_loss(student, teachers, rows)
