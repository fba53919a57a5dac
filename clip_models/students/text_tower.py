"""A student without an image tower: it learns to meet image embeddings that somebody else made."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import _build_text_tower
from torch import Tensor, nn


class CachedImages(nn.Module):
    """In an image tower's place: embeddings (n, width) as they are, or through a linear map without bias.

    Without bias, since then the embeddings' lengths, which a cache does not keep, change no direction.
    """

    def __init__(self, embed_dim: int, width: int, head: bool) -> None:
        super().__init__()
        self.width = width
        self.head = nn.Linear(width, embed_dim, bias=False) if head else None

    def forward(self, embeddings: Tensor) -> Tensor:
        """(n, width) → (n, embed_dim)."""
        return embeddings if self.head is None else self.head(embeddings)


class TextTower(nn.Module):
    """What open_clip's CustomTextCLIP of the same configuration has, less its image tower; tensors have the same names.

    `text` is the tower, `visual` what becomes of the embeddings that stand for images; `logit_scale` and, where the
    configuration begins it, `logit_bias` are 0-d parameters.
    """

    def __init__(
        self,
        embed_dim: int,
        text_cfg: dict[str, Any],
        cached_images: dict[str, Any],
        *,
        quick_gelu: bool = False,
        init_logit_scale: float = math.log(1 / 0.07),
        init_logit_bias: float | None = None,
        **_image: Any,
    ) -> None:
        """`model_cfg`'s fields, and `cached_images` with those of `CachedImages`; the image tower's are not looked at.

        Raises `ValueError` if embeddings of another width are to be taken as they are.
        """
        super().__init__()
        if not cached_images["head"] and cached_images["width"] != embed_dim:
            raise ValueError(f"{cached_images['width']} numbers an image cannot meet {embed_dim} of a text's")
        self.visual = CachedImages(embed_dim, **cached_images)
        self.text = _build_text_tower(embed_dim, text_cfg, quick_gelu)
        self.logit_scale = nn.Parameter(torch.tensor(init_logit_scale))
        self.logit_bias = None if init_logit_bias is None else nn.Parameter(torch.tensor(init_logit_bias))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(n, width) embeddings by the tower that this one was trained beside → (n, embed_dim)."""
        features: Tensor = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(n, context) int64 → (n, embed_dim), of unit norm if `normalize`."""
        features: Tensor = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass; open_clip's own towers know how."""
        self.text.set_grad_checkpointing(enable)
