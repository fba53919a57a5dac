"""Export to TorchScript, in the interface of teensy-tiny-clip; every model can be traced."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models import LoadedModel
from distill.export.card import write_card
from distill.export.compare import (
    CAPTIONS,
    Measured,
    Outputs,
    compared,
    has_text,
    made_up_texts,
    on_cpu,
    reference_outputs,
    shown,
)
from distill.export.encoders import ImageEncoder, TextEncoder, plain_operations, write_config
from distill.export.staging import staged

FILE_NAME = "model.pt"


def export_torchscript(loaded: LoadedModel, folder: str) -> Measured:
    """Write `model.pt` for `torch.jit.load`, and `config.json` with the preprocessing.

    The interface is that of teensy-tiny-clip (github.com/jlana5/teensy-tiny-clip): `model.image_encoder(images)` maps
    (n, 3, h, w) float32 to (n, D) of unit norm, `model(images, texts)` to logits (n, m). `texts` are embeddings (m, D),
    which are normalised, or, of a model with a text tower, token ids (m, context_length) int64, which
    `model.text_encoder(ids)` maps to (m, D) of unit norm. `model.logit_scale` and `model.logit_bias` are what the
    cosines are multiplied by and what is added.

    Returns the largest differences as `export_open_clip` does, `text_embedding` only of a model with a text tower.
    Raises as `export_open_clip` does, but for models that open_clip cannot build: all can be exported.
    """
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging:
        with plain_operations():
            packed = io.BytesIO()
            torch.jit.save(_scripted(model, loaded), packed)
        # Not by torch itself, which ends the whole process where a disk is full.
        (staging / FILE_NAME).write_bytes(packed.getbuffer())
        write_config(staging, model, loaded)
        measured = compared(reference, _reloaded(model, loaded, staging))
        write_card(staging, loaded, "torchscript", measured)
    return measured


class _NoTextEncoder(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError("this model has no text tower: give text embeddings, not token ids")


class _Pairs(nn.Module):
    def __init__(self, image_encoder: Any, text_encoder: Any, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.register_buffer("logit_scale", scale)
        self.register_buffer("logit_bias", bias)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        # One text alone may come without its batch's dimension, as squeezed by the reference's own encode_text.
        rows = texts.reshape(-1, texts.shape[-1])
        embeddings = F.normalize(rows, dim=-1) if texts.is_floating_point() else self.text_encoder(rows)
        cosines = self.image_encoder(images) @ embeddings.to(images.dtype).T
        logits: Tensor = self.logit_scale * cosines + self.logit_bias
        return logits


def _scripted(model: Any, loaded: LoadedModel) -> Any:
    # Batches of 2 are traced, others compared: a batch size that became a constant would be found.
    pixels = shown(model, loaded.preprocess)[:2]
    image_encoder = _traced(ImageEncoder(model), pixels)
    text_encoder: Any = _NoTextEncoder()
    if has_text(model):
        tokens = loaded.tokenizer(CAPTIONS[:2])
        text_encoder = _traced(TextEncoder(model), tokens)
    scale = model.logit_scale.detach().exp()
    bias = getattr(model, "logit_bias", None)
    pairs = _Pairs(image_encoder, text_encoder, scale, torch.zeros_like(scale) if bias is None else bias.detach())
    return torch.jit.script(pairs.eval())


def _traced(encoder: nn.Module, example: Tensor) -> Any:
    return torch.jit.trace(encoder.eval(), (example,), check_trace=False)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _reloaded(model: Any, loaded: LoadedModel, folder: Path) -> Outputs:
    with plain_operations():
        other: Any = torch.jit.load(str(folder / FILE_NAME), map_location="cpu")  # type: ignore[no-untyped-call]
    pixels = shown(model, loaded.preprocess)
    images = torch.cat([other.image_encoder(pixels[:1]), other.image_encoder(pixels[1:])])
    if not has_text(model):
        return Outputs(images, None, other(pixels, made_up_texts(images.shape[1])))
    tokens = loaded.tokenizer(CAPTIONS)
    texts = torch.cat([other.text_encoder(tokens[:1]), other.text_encoder(tokens[1:])])
    return Outputs(images, texts, other(pixels, tokens))
