"""A student around any image model that timm has, as CLIP-KD makes its own (Yang et al., CVPR 2024)."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch

from clip_models.spec import TIMM
from shards.errors import UserError

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 384, "heads": 6, "layers": 12}


def timm_student(name: str) -> dict[str, Any]:
    """The `model_cfg` of the student `timm/NAME`: timm's image model at the size that timm's weights have seen, 512
    numbers to embed in, CLIP-KD's small text tower.

    The image model ends in a linear projection without bias. In one whose head has layers of its own before the
    classifier (MobileNetV3's, say) that classifier is the projection, and has a bias: open_clip would take the number
    of features before those layers for theirs.

    Raises `UserError` for a name that timm does not know.
    """
    bare = name.removeprefix(TIMM)
    if not timm.is_model(bare):
        close = difflib.get_close_matches(bare, timm.list_models(), n=3, cutoff=0.5)
        hint = f"The closest are {', '.join(TIMM + one for one in close)}" if close else "timm.list_models() has them"
        raise UserError(f"timm has no model {bare!r}", where=name, do=hint)
    with torch.device("meta"):
        trunk = timm.create_model(bare)
    weights = timm.get_pretrained_cfg(bare)
    size = weights.input_size[-1] if weights else 224
    own_head = getattr(trunk, "head_hidden_size", trunk.num_features) != trunk.num_features
    head = {"timm_pool": "avg", "timm_proj": ""} if own_head else {"timm_pool": "", "timm_proj": "linear"}
    vision = {"image_size": size, "timm_model_name": bare, "timm_model_pretrained": False, **head}
    return {"embed_dim": 512, "vision_cfg": vision, "text_cfg": dict(_TEXT)}
