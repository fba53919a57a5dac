"""Teachers in open_clip's formats: CLIP, SigLIP, CoCa and their relatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import PIL
import torch
from torch import Tensor

from clip_models import LoadedModel, Normaliser, load_model, square_side
from shards.errors import UserError
from teacher_cache.teachers.base import (
    PROBE,
    Facts,
    Teacher,
    compiled,
    conv_layout,
    keep_only,
    tokens_hash,
    weights_hash,
)
from teacher_cache.teachers.load import SPEC_FORMS
from teacher_cache.teachers.settings import Forward, Towers


def is_open_clip(spec: str) -> bool:
    """Whether a spec has one of open_clip's forms, its model found or not."""
    name = spec.partition(":")[0]
    # A misspelt architecture is answered by load_model, which knows the closest.
    return "-" in name or "/" in name or Path(spec).is_dir() or name in open_clip.list_models()


class OpenClipTeacher(Teacher):
    """Runs `encode_image` and `encode_text` of the model that `clip_models.load_model` loads."""

    def __init__(self, spec: str, name: str, forward: Forward, towers: Towers) -> None:  # noqa: ARG002 - every kind's
        if not is_open_clip(spec):
            raise UserError("no kind of teacher has such a spec", where=spec, do=SPEC_FORMS)
        loaded = load_model(spec)
        super().__init__(spec, _facts(loaded), forward, towers)
        model = loaded.model
        if towers == "image":
            keep_only(model, ["visual"])
        elif towers == "text":
            del model.visual
        if towers != "text":
            conv_layout(model.visual, self.device)
        self._model = model.to(self.device)
        self._tokenizer, self._normalise = loaded.tokenizer, Normaliser(loaded.config, self.device)
        self._encode_image = compiled(model.encode_image, forward)
        self._encode_text = compiled(model.encode_text, forward)

    def _images(self, pixels: Tensor) -> Any:
        return self._encode_image(self._normalise(pixels))

    def _texts(self, texts: list[str]) -> Any:
        return self._encode_text(self._tokenizer(texts).to(self.device, non_blocking=True))


def _facts(loaded: LoadedModel) -> Facts:
    model, config = loaded.model, loaded.config
    size, preprocess = square_side(config, loaded.name), config["preprocess_cfg"]
    bias = getattr(model, "logit_bias", None)
    # What is "random" in training is bicubic in open_clip's evaluation.
    interpolation = "bilinear" if preprocess["interpolation"] == "bilinear" else "bicubic"
    return Facts(
        image_size=size,
        resize_mode=preprocess["resize_mode"],
        interpolation=interpolation,
        has_text=True,
        embed_dim=config["model_cfg"]["embed_dim"],
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=None if bias is None else float(bias.detach()),
        identity={
            "kind": "open_clip",
            "model": config["model_cfg"],
            "weights": weights_hash(model.state_dict()),
            "preprocess": {
                "size": size,
                "mean": list(preprocess["mean"]),
                "std": list(preprocess["std"]),
                "resize_mode": preprocess["resize_mode"],
                "interpolation": interpolation,
            },
            "tokenizer": tokens_hash([loaded.tokenizer(PROBE)]),
        },
        versions={"torch": torch.__version__, "open_clip": open_clip.__version__, "pillow": PIL.__version__},
    )
