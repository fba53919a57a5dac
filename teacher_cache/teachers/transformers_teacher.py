"""Teachers as transformers saves them: CLIPModel and SiglipModel (SigLIP 2 at a fixed resolution is one too)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from clip_models import Normaliser
from shards import UserError
from teacher_cache.teachers.base import PROBE, Facts, Teacher, compiled, keep_only, tokens_hash, weights_hash
from teacher_cache.teachers.hugging_face import model_folder, quiet
from teacher_cache.teachers.settings import Forward, Towers

_MODELS = {"clip": CLIPModel, "siglip": SiglipModel}

_CONFIG = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("image_size", "patch_size", "vision_use_head"),
    *("max_position_embeddings", "eos_token_id", "projection_size", "projection_dim"),
)
"""The fields of a tower's configuration that decide its embeddings. Others come and go with transformers' releases."""

_FILTERS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as processors name them."""
_DO = "Save the processor that belongs to the model"


class TransformersTeacher(Teacher):
    """Runs `get_image_features` and `get_text_features`; texts are padded to the model's full length.

    Raises `UserError` if the folder holds another kind of model, lacks weights in safetensors, or preprocesses in a
    way that no square of pixels with a mean and a standard deviation expresses.
    """

    def __init__(self, spec: str, name: str, forward: Forward, towers: Towers) -> None:
        folder = model_folder(name, spec)
        model, processor, tokenizer = _load(folder, spec)
        self._inputs = ("input_ids", "attention_mask") if isinstance(model, CLIPModel) else ("input_ids",)
        self._tokenizer, self._length = tokenizer, model.config.text_config.max_position_embeddings
        preprocess = _preprocess(processor, model.config.vision_config.image_size, spec)
        super().__init__(spec, self._facts(model, preprocess), forward, towers)
        if towers != "both":
            kept = {"image": ["vision_model", "visual_projection"], "text": ["text_model", "text_projection"]}
            keep_only(model, kept[towers])
        self._model = model.to(self.device)
        self._normalise = Normaliser({"preprocess_cfg": preprocess}, self.device)
        self._image_features = compiled(model.get_image_features, forward)
        self._text_features = compiled(model.get_text_features, forward)

    def _images(self, pixels: Tensor) -> Any:
        return self._image_features(pixel_values=self._normalise(pixels)).pooler_output

    def _texts(self, texts: list[str]) -> Any:
        tokens = {key: ids.to(self.device, non_blocking=True) for key, ids in self._tokens(texts).items()}
        return self._text_features(**tokens).pooler_output

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """`input_ids`, and of CLIP `attention_mask`: SigLIP was trained attending to its padding."""
        batch = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        )
        return {key: batch[key] for key in self._inputs}

    def _facts(self, model: Any, preprocess: dict[str, Any]) -> Facts:
        config = model.config
        towers = {"vision": config.vision_config.to_dict(), "text": config.text_config.to_dict()}
        clip = isinstance(model, CLIPModel)
        return Facts(
            image_size=preprocess["size"],
            resize_mode=preprocess["resize_mode"],
            interpolation=preprocess["interpolation"],
            has_text=True,
            embed_dim=config.projection_dim if clip else config.vision_config.hidden_size,
            logit_scale=float(model.logit_scale.detach().exp()),
            logit_bias=None if clip else float(model.logit_bias.detach()),
            identity={
                "kind": "transformers",
                "model": {
                    "type": config.model_type,
                    **{name: {key: tower[key] for key in _CONFIG if key in tower} for name, tower in towers.items()},
                },
                "weights": weights_hash(model.state_dict()),
                "preprocess": preprocess,
                "tokenizer": tokens_hash(self._tokens(PROBE).values()),
            },
            versions={"torch": torch.__version__, "transformers": transformers.__version__},
        )


def _load(folder: Path, spec: str) -> tuple[Any, Any, Any]:
    do = "A folder as save_pretrained writes it holds config.json, model.safetensors, the processor and the tokenizer"
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kind = _MODELS.get(config.model_type)
            if kind is None:
                known = " and ".join(_MODELS)
                raise UserError(f"it holds a model of type {config.model_type!r}; teachers are {known}", where=spec)
            model, report = kind.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except UserError:
            raise
        except Exception as error:  # a damaged file can raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(f"it cannot be loaded: {reason}", where=spec, do=do) from error
    absent = sorted(report["missing_keys"])
    if absent:
        raise UserError(f"the weights lack {len(absent)} tensors, {absent[0]!r} the first", where=spec, do=do)
    return model.eval(), processor, tokenizer


def _preprocess(processor: Any, side: int, spec: str) -> dict[str, Any]:
    """`size`, `mean`, `std`, `resize_mode` and `interpolation`, as open_clip writes them."""
    if not processor.do_resize:
        raise UserError("the processor does not resize images", where=spec, do=_DO)
    crop = bool(getattr(processor, "do_center_crop", False))
    size = processor.crop_size if crop else processor.size
    if (size.get("height"), size.get("width")) != (side, side):
        raise UserError(
            f"the processor makes images of {dict(size)}, the model sees {side} x {side}",
            where=spec,
            do=_DO,
        )
    edges = {edge: value for edge, value in dict(processor.size).items() if value is not None}
    if edges not in ({"shortest_edge": side}, {"height": side, "width": side}):
        raise UserError(
            f"the processor resizes images to {edges}, then keeps the middle {side} x {side}; a view is all kept",
            where=spec,
            do=f"Save the processor with size {{'shortest_edge': {side}}} if the model may see that much",
        )
    interpolation = _FILTERS.get(processor.resample)
    if interpolation is None:
        known = " and ".join(f"{number} ({name})" for number, name in _FILTERS.items())
        raise UserError(f"the processor resizes with resample {processor.resample}; known are {known}", where=spec)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if abs(factor * 255 - 1) > 1e-6:
        raise UserError(f"the processor rescales pixels by {factor}, not by 1/255", where=spec)
    plain = not processor.do_normalize
    return {
        "size": side,
        "mean": [0.0] * 3 if plain else [float(value) for value in processor.image_mean],
        "std": [1.0] * 3 if plain else [float(value) for value in processor.image_std],
        "resize_mode": "shortest" if "shortest_edge" in edges else "squash",
        "interpolation": interpolation,
    }
