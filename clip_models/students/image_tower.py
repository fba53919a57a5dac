"""A student without a text tower: it learns to meet text embeddings that somebody else makes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower
from torch import Tensor, nn


class ImageTower(nn.Module):
    """What open_clip's CLIP of the same configuration has, less its text tower; tensors have the same names.

    `visual` is the tower; `logit_scale` and, where the configuration begins it, `logit_bias` are 0-d parameters.
    """

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        quick_gelu: bool = False,
        init_logit_scale: float = math.log(1 / 0.07),
        init_logit_bias: float | None = None,
        **_text: Any,
    ) -> None:
        """`model_cfg`'s fields; those of the text tower are not looked at."""
        super().__init__()
        self.visual = _build_vision_tower(embed_dim, vision_cfg, quick_gelu)
        self.logit_scale = nn.Parameter(torch.tensor(init_logit_scale))
        self.logit_bias = None if init_logit_bias is None else nn.Parameter(torch.tensor(init_logit_bias))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(n, 3, h, w) float32 → (n, embed_dim), of unit norm if `normalize`."""
        features: Tensor = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass; open_clip's own towers know how."""
        self.visual.set_grad_checkpointing(enable)
