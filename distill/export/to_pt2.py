"""Export by torch.export (.pt2), which takes TorchScript's place in PyTorch; every model can be exported."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_models import LoadedModel
from distill.export.card import write_card
from distill.export.compare import (
    CAPTIONS,
    Measured,
    Outputs,
    compared,
    has_text,
    logits_of,
    on_cpu,
    reference_outputs,
    shown,
)
from distill.export.encoders import ImageEncoder, TextEncoder, plain_operations, write_config
from distill.export.staging import staged

IMAGE_NAME, TEXT_NAME = "image_encoder.pt2", "text_encoder.pt2"


def export_pt2(loaded: LoadedModel, folder: str) -> Measured:
    """Write `image_encoder.pt2`, `text_encoder.pt2` if there is a text tower, and `config.json` with the preprocessing.

    `torch.export.load(FILE).module()` maps (batch, 3, h, w) float32, or (batch, context_length) int64, to (batch, D)
    float32 of unit norm, for batches of any size.

    Returns what `export_onnx` does. Raises as `export_open_clip` does, but for models that open_clip cannot build.
    """
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    pixels = shown(model, loaded.preprocess)
    with staged(folder) as staging:
        _write(ImageEncoder(model), "images", pixels[:2], staging / IMAGE_NAME)
        texts = None
        if has_text(model):
            ids = loaded.tokenizer(CAPTIONS)
            _write(TextEncoder(model), "tokens", ids[:2], staging / TEXT_NAME)
            texts = _reloaded(staging / TEXT_NAME, ids)
        write_config(staging, model, loaded)
        images = _reloaded(staging / IMAGE_NAME, pixels)
        measured = compared(reference, Outputs(images, texts, logits_of(model, images, texts)))
        write_card(staging, loaded, "pt2", measured)
    return measured


def exported(encoder: nn.Module, name: str, example: Tensor, batch: Any) -> Any:
    """`encoder` of one argument, `name`, as an ExportedProgram; `batch`: its first dimension, None for a fixed one."""
    shapes = {name: {0: batch}} if batch is not None else None
    with plain_operations():
        return torch.export.export(encoder.eval(), (example,), dynamic_shapes=shapes)


def _write(encoder: nn.Module, name: str, example: Tensor, path: Path) -> None:
    program = exported(encoder, name, example, torch.export.Dim("batch", min=1))
    packed = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, packed)
    # Not by torch itself, which ends the whole process where a disk is full.
    path.write_bytes(packed.getbuffer())


@torch.no_grad()
def _reloaded(path: Path, batch: Tensor) -> Tensor:
    module = torch.export.load(path).module()
    return torch.cat([module(batch[:1]), module(batch[1:])])
