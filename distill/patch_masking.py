"""Masked images (FLIP, Li et al., CVPR 2023, arXiv 2212.00794): in training a ViT sees a random part of its patches.

With it feature distillation is masked feature distillation (MFD of CLIP-KD, at a share of 0.75).
"""

from __future__ import annotations

from typing import Any

from shards.errors import UserError


def mask_patches(model: Any, share: float, name: str = "the student") -> None:
    """Leave out this share of the patches, in [0, 1), drawn anew for each image, whenever `model` is in training.

    `model`: open_clip's, its image tower a ViT of open_clip's or of timm's; it is changed in place. Raises `UserError`
    for any other, in which the model is called `name`.
    """
    # Whoever has such a model has loaded it already.
    from open_clip.transformer import PatchDropout  # noqa: PLC0415

    visual = model.visual
    trunk: Any = getattr(visual, "trunk", None)
    if hasattr(visual, "patch_dropout"):
        visual.patch_dropout = PatchDropout(share)
    elif hasattr(trunk, "patch_drop") and trunk.num_prefix_tokens < 2:
        trunk.patch_drop = PatchDropout(share, exclude_first_token=trunk.num_prefix_tokens == 1)
    else:
        raise UserError(
            f"patches of {name} cannot be masked: its image tower is a {type(trunk or visual).__name__}",
            where="--patch-mask",
            do="Use a ViT, or leave it out",
        )
