"""A model from a configuration or a name: open_clip's modules, without weights of any source."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch

from clip_models.config import (
    ModelConfig,
    check_model_cfg,
    has_no_image,
    has_no_text,
    preprocess_cfg,
    read_config,
    read_json,
)
from clip_models.pruned import put_blocks, take_shapes
from clip_models.spec import CONFIG_NAME, TIMM, refuse_no_student
from clip_models.students import ImageTower, TextTower, timm_student
from shards.errors import UserError

Tower = Literal["image", "text"]


def create_student(
    config: str,
    seed: int,
    towers: Sequence[Tower] = ("image", "text"),
    like: ModelConfig | None = None,
    *,
    image_size: int | None = None,
    context_length: int | None = None,
    cached_images: Mapping[str, Any] | None = None,
) -> tuple[Any, ModelConfig]:
    """Create a randomly initialised float32 model in training mode, with its config.

    `config` is the name of a published student (`clip_models.students`) or of an open_clip architecture, `timm/NAME`
    for any image model of timm's, the path of a .json file in the format of open_clip's `model_configs` (`embed_dim`,
    `vision_cfg`, `text_cfg`), or a model's folder. The weights are a function of `config`, `seed` and `towers` alone;
    the caller's random state is left as it was. Preprocessing is the folder's, else open_clip's default at the model's
    image size. Without "text" in `towers` the model is an `ImageTower`, with a config by which `load_model` makes one
    again; without "image" a `TextTower`, which meets image embeddings as `cached_images` says (`CachedImages`). `like`:
    the config of a model whose weights it is to inherit; its activation and the mean and deviation of its pixels are
    then the student's. `image_size` (pixels) and `context_length` (tokens) stand for the configuration's own.

    Raises `UserError` for an unknown name, an unreadable file, or a configuration no model can be built from.
    """
    within = Path(config, CONFIG_NAME)
    full = read_config(within) if within.is_file() else _named_config(config)
    full.pop("towers", None)
    full.pop("cached_images", None)
    if "text" not in towers:
        full["towers"] = ["image"]
    elif "image" not in towers:
        _put_cached_images(full, dict(cached_images or {}), config)
    if image_size is not None:
        _resize(full, image_size, config)
    if context_length is not None:
        full["model_cfg"]["text_cfg"]["context_length"] = context_length
    if like is not None:
        full["model_cfg"]["quick_gelu"] = like["model_cfg"].get("quick_gelu", False)
        full["preprocess_cfg"] |= {name: like["preprocess_cfg"][name] for name in ("mean", "std")}
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would reseed the accelerators as well, which the fork does not restore.
        torch.default_generator.manual_seed(seed)
        model = build(full, config)
        if image_size is not None and hasattr(model.visual, "trunk"):
            _try(model, image_size, config)
        return model, full


def build_model(config: ModelConfig) -> Any:
    """A float32 model of this config in training mode, with some weights or other; no random state is touched.

    Raises `UserError` for a configuration no model can be built from.
    """
    with torch.random.fork_rng(devices=[]):
        return build(config, "the configuration")


def _named_config(config: str) -> ModelConfig:
    refuse_no_student(config)
    if config.endswith(".json"):
        model_cfg = read_json(Path(config), "Give a JSON file in the format of open_clip's model_configs")
    elif config.startswith(TIMM):
        model_cfg = timm_student(config)
    else:
        model_cfg = open_clip.get_model_config(config.replace("/", "-"))
    check_model_cfg(model_cfg, config)
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg(model_cfg, {})}


def _put_cached_images(config: ModelConfig, cached: dict[str, Any], where: str) -> None:
    width = config["model_cfg"]["embed_dim"]
    if not cached["head"] and cached["width"] != width:
        raise UserError(
            f"image embeddings {cached['width']} wide cannot stand for the image tower of a student {width} wide",
            where=where,
            do="Choose one teacher, and a student, of equal width, or train a map between them with --image-head",
        )
    config |= {"towers": ["text"], "cached_images": cached}


def _resize(config: ModelConfig, side: int, where: str) -> None:
    """Have a configuration see images of another size. Raises `UserError` if its patches do not fill them."""
    vision = config["model_cfg"]["vision_cfg"]
    if "timm_model_name" not in vision:
        patch = 32 if isinstance(vision.get("layers"), list) else vision.get("patch_size", 16)
        if side % patch:
            raise UserError(
                f"patches of {patch} pixels do not fill {side}",
                where=f"--image-size {side}, of {where}",
                do=f"Give a multiple of {patch}",
            )
    vision["image_size"] = side
    config["preprocess_cfg"]["size"] = side


def _set_input_size(visual: Any) -> None:
    """Tell a tower of timm's the size that its configuration says: open_clip leaves it at the name's own."""
    trunk = getattr(visual, "trunk", None)
    patches = getattr(trunk, "patch_embed", None)
    own = getattr(patches, "img_size", None)
    if trunk is not None and own is not None and hasattr(trunk, "set_input_size") and own != visual.image_size:
        with warnings.catch_warnings():
            # How timm resizes a Swin's tables is slow and old-fashioned, says torch.
            warnings.simplefilter("ignore")
            trunk.set_input_size(img_size=visual.image_size)


def _try(model: Any, side: int, where: str) -> None:
    """See one empty image: many of timm's towers take any size, and some only say so when they are asked."""
    was = model.visual.training
    try:
        with torch.no_grad():
            model.visual.eval()(torch.zeros(1, 3, side, side))
    except Exception as error:  # whatever timm's modules object to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"its image tower takes no images of {side} pixels: {reason}",
            where=f"--image-size {side}, of {where}",
            do="Give another size, or another student",
        ) from error
    finally:
        model.visual.train(was)


def build(config: ModelConfig, where: str) -> Any:
    """open_clip's module for a config, without weights of any source; as its `create_model` would make it."""
    arguments = deepcopy(config["model_cfg"])
    text_cfg, vision_cfg = arguments["text_cfg"], arguments["vision_cfg"]
    custom_text = arguments.pop("custom_text", False) or "hf_model_name" in text_cfg
    if "timm_model_name" in vision_cfg:
        vision_cfg["timm_model_pretrained"] = False
    if "hf_model_name" in text_cfg:
        text_cfg["hf_model_pretrained"] = False
    kind = open_clip.CLIP
    if has_no_text(config):
        kind = ImageTower
    elif has_no_image(config):
        kind = TextTower
        arguments["cached_images"] = config["cached_images"]
    elif custom_text:
        kind = open_clip.CoCa if "multimodal_cfg" in arguments else open_clip.CustomTextCLIP
    try:
        shapes = take_shapes(arguments)
        model = kind(**arguments)
        put_blocks(model, shapes)
        _set_input_size(model.visual)
    except Exception as error:  # whatever the constructors of open_clip, timm and transformers object to
        reason = str(error) or type(error).__name__
        raise UserError(f"no model can be built from this configuration: {reason}", where=where) from error
    open_clip.set_model_preprocess_cfg(model, config["preprocess_cfg"])
    return model
