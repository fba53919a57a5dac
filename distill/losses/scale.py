"""The trained multiplier of the losses that have logits of their own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distill.losses.base import one_of

FORMS = ("exponentiated", "reference")


class LearnedScale(nn.Module):
    """A multiplier stored as its log, ln(1/0.07) at first, as CLIP's own. Unlike the student's it is not clamped.

    `form`: "exponentiated", or "reference": the stored number itself is the multiplier, as in CLIP-KD's code, so that
    it starts from 2.66 where 14.3 was meant. `where` names it in the `UserError` for any other.
    """

    def __init__(self, form: str, where: str) -> None:
        super().__init__()
        self.form = one_of(form, FORMS, where)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        """The multiplier, a scalar."""
        return self.logit_scale.exp() if self.form == "exponentiated" else self.logit_scale
