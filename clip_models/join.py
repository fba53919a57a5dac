"""A text tower that was trained beside cached images, and the image tower that these came of, as one model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_models.config import ModelConfig, has_no_image, has_no_text
from clip_models.create import build
from clip_models.models import LoadedModel
from shards.errors import UserError

_APART = 1e-4


@torch.no_grad()
def join_towers(text: LoadedModel, image: LoadedModel) -> tuple[Any, ModelConfig]:
    """open_clip's CustomTextCLIP of both, in evaluation mode, with its config; logit scale and bias are the text's.

    A head that the text tower was trained with becomes part of the image tower's projection. Raises `UserError` if
    `text` is no `TextTower`, `image` has no image tower of that width, or open_clip cannot hold the two as one.
    """
    if not has_no_image(text.config):
        raise UserError("it is no text tower alone", where=text.name, do="Give what --image-tower cache has trained")
    cached = text.config["cached_images"]
    width = image.config["model_cfg"]["embed_dim"]
    if has_no_image(image.config) or width != cached["width"]:
        lacks = "it has no image tower" if has_no_image(image.config) else f"its images are {width} numbers"
        raise UserError(f"{lacks}, the text tower was trained beside {cached['width']}", where=image.name)
    theirs, ours = (bool(one.config["model_cfg"].get("quick_gelu")) for one in (image, text))
    if theirs != ours and not has_no_text(image.config):
        raise UserError(
            f"its quick_gelu is {theirs}, that of the text tower {ours}: open_clip knows one for both",
            where=image.name,
            do="Train a student whose configuration says the same",
        )
    config = deepcopy(image.config)
    config.pop("towers", None)
    own = text.config["model_cfg"]
    config["model_cfg"] |= {"embed_dim": own["embed_dim"], "text_cfg": own["text_cfg"], "custom_text": True}
    for name in ("init_logit_scale", "init_logit_bias"):
        config["model_cfg"].pop(name, None)
        if name in own:
            config["model_cfg"][name] = own[name]
    tower = {name: value for name, value in image.model.state_dict().items() if name.startswith("visual.")}
    rest = {name: value for name, value in text.model.state_dict().items() if not name.startswith("visual.")}
    head = text.model.visual.head
    model = build(config, image.name).eval()
    model.load_state_dict((tower if head is None else _folded(tower, head.weight, image.name)) | rest)
    _prove(model, text.model, image)
    return model, config


def _folded(tower: dict[str, Tensor], head: Tensor, where: str) -> dict[str, Tensor]:
    """The head's (D', D) after the map that a tower ends with."""
    if "visual.proj" in tower:
        return tower | {"visual.proj": tower["visual.proj"] @ head.T}
    for last in ("visual.head.proj", "visual.attnpool.c_proj"):
        if f"{last}.weight" in tower:
            bias = {f"{last}.bias": head @ tower[f"{last}.bias"]} if f"{last}.bias" in tower else {}
            return tower | {f"{last}.weight": head @ tower[f"{last}.weight"]} | bias
    raise UserError("its image tower ends in no map that a head could become part of", where=where)


def _prove(model: Any, text: Any, image: LoadedModel) -> None:
    """That the joined model says of an image what the text tower was trained to meet."""
    side = image.config["preprocess_cfg"]["size"]
    pixels = torch.randn(2, 3, *((side, side) if isinstance(side, int) else side))
    met = text.encode_image(image.model.encode_image(pixels, normalize=True))
    apart = float((model.encode_image(pixels, normalize=True) - F.normalize(met, dim=-1)).abs().max())
    if not apart < _APART:
        raise UserError(f"the two do not make one model: embeddings are apart by {apart:.2g}", where=image.name)
