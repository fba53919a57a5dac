"""The two towers of a model, named and described alike however the model keeps them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from clip_models.shapes import PRUNED

if TYPE_CHECKING:
    from clip_models.config import ModelConfig

SCALARS = ("logit_scale", "logit_bias")
SIZES = {"layers", "width", "heads", "mlp_ratio", "embed_dim", "context_length", "image_size"}
"""The fields of a tower that may differ between student and teacher."""
INPUT_SIZES = {"context_length", "image_size"}
"""Those that may in a tower of any family, as far as its tensors' shapes allow it."""
LAYER = re.compile(r"(transformer\.resblocks|layer[1-4])\.(\d+)\.(.+)")
"""A tensor of a layer: the stack that the layer is in, its index there, the name within the layer."""

_OPEN_CLIPS_OWN = ("VisionTransformer", "ModifiedResNet", "TextTransformer")
_OF_A_RESNET = SIZES | {"head_width"}
_POSITIONS = {"VisionTransformer": "positional_embedding", "ModifiedResNet": "attnpool.positional_embedding"}
_STRIDE_OF_A_RESNET = 32
_NOT_OF_A_TOWER = {"vision_cfg", "text_cfg", PRUNED, "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
_CHANGES_NO_EMBEDDING = {"custom_text", "output_dict", "patch_dropout", "timm_drop", "timm_drop_path"}
_WHERE_FIRST_WEIGHTS_ARE_FROM = {"timm_model_pretrained", "hf_model_pretrained"}


@dataclass(frozen=True, kw_only=True)
class TowerView:
    """One tower: `family` names its kind of module, `fields` are what its configuration decides.

    `tensors` has, by the name within the tower, the name in the model and the tensor, which shares the model's memory.
    """

    name: Literal["image", "text"]
    family: str
    fields: dict[str, Any]
    tensors: dict[str, tuple[str, Tensor]]

    @property
    def plain(self) -> bool:
        """Whether a smaller one of its kind is this one with layers and leading parts taken out."""
        return self.family in _OPEN_CLIPS_OWN and not self.fields.get("attentional_pool")

    @property
    def positions(self) -> str | None:
        """The tensor that embeds the class position and then `grid`, row by row; of an image tower of open_clip's."""
        return _POSITIONS.get(self.family)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, or of a ResNet's last features."""
        patch = self.fields.get("patch_size", [_STRIDE_OF_A_RESNET] * 2)
        rows, columns = (side // of for side, of in zip(self.fields["image_size"], patch, strict=True))
        return rows, columns

    def depths(self) -> dict[str, int]:
        """Stack of layers → how many."""
        found: dict[str, int] = {}
        for match in filter(None, map(LAYER.fullmatch, self.tensors)):
            found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
        return found


def towers(model: Any, config: ModelConfig) -> Iterator[TowerView]:
    """The towers that there are, the image's first; the scalars of the logits belong to neither."""
    from clip_models.config import has_no_image  # noqa: PLC0415 - brings open_clip, as in `_fields`

    image: dict[str, tuple[str, Tensor]] = {}
    text: dict[str, tuple[str, Tensor]] = {}
    for name, value in model.state_dict().items():
        if name.startswith("visual."):
            image[name.removeprefix("visual.")] = (name, value)
        elif name not in SCALARS:
            text[name.removeprefix("text.")] = (name, value)
    # A text tower alone has no more than a head there, which is of its own run.
    if not has_no_image(config):
        yield _view("image", type(model.visual).__name__, config, image)
    if text:
        family = type(model.text).__name__ if hasattr(model, "text") else "TextTransformer"
        if hasattr(model, "text_decoder"):
            family = "text tower with a decoder"
        yield _view("text", family, config, text)


def _view(
    name: Literal["image", "text"], family: str, config: ModelConfig, tensors: dict[str, tuple[str, Tensor]]
) -> TowerView:
    pruned = config["model_cfg"].get(PRUNED, {}).get("vision" if name == "image" else name)
    family = f"pruned {family}" if pruned else family
    fields = _fields(config, name, family) | ({PRUNED: pruned} if pruned else {})
    return TowerView(name=name, family=family, fields=fields, tensors=tensors)


def _fields(config: ModelConfig, tower: str, family: str) -> dict[str, Any]:
    """What a configuration says of the embeddings that a tower computes; open_clip's defaults filled in."""
    # Whoever has a model to inherit from has loaded it already.
    from open_clip import CLIPTextCfg, CLIPVisionCfg  # noqa: PLC0415

    model_cfg = config["model_cfg"]
    usual, own = (CLIPVisionCfg(), "vision_cfg") if tower == "image" else (CLIPTextCfg(), "text_cfg")
    every = {"quick_gelu": False} | asdict(usual) | model_cfg[own] | model_cfg
    left_out = _NOT_OF_A_TOWER | _CHANGES_NO_EMBEDDING | _WHERE_FIRST_WEIGHTS_ARE_FROM
    fields: dict[str, Any] = json.loads(json.dumps({key: every[key] for key in every.keys() - left_out}))
    for side in ("image_size", "patch_size"):
        if isinstance(fields.get(side), int):
            fields[side] = [fields[side]] * 2
    if family in _OPEN_CLIPS_OWN:
        # As open_clip makes them: a ResNet attends once, over its last features, 32 times as wide as its stem.
        width = fields["width"] * (32 if family == "ModifiedResNet" else 1)
        fields["heads"] = fields["heads"] if tower == "text" else width // fields["head_width"]
        fields["head_width"] = width // fields["heads"]
    if family == "ModifiedResNet":
        fields = {key: fields[key] for key in _OF_A_RESNET & fields.keys()}
    return fields
