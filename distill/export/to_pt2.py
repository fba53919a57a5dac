"""Export by torch.export (.pt2), which takes TorchScript's place in PyTorch; every model can be exported."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_models import LoadedModel
from distill.export.by_tower import Tower, export_by_tower
from distill.export.compare import Measured
from distill.export.encoders import ImageEncoder, TextEncoder, plain_operations


def export_pt2(loaded: LoadedModel, folder: str) -> Measured:
    """Write `image_encoder.pt2`, `text_encoder.pt2` if there is a text tower, and `config.json` with the preprocessing.

    `torch.export.load(FILE).module()` maps (batch, 3, h, w) float32, or (batch, context_length) int64, to (batch, D)
    float32 of unit norm, for batches of any size.

    Returns what `export_onnx` does. Raises as `export_open_clip` does, but for models that open_clip cannot build.
    """
    return export_by_tower(loaded, folder, "pt2", _converted)


def _converted(tower: Tower, model: Any, batch: Tensor, folder: Path) -> Tensor:
    path = folder / f"{tower}_encoder.pt2"
    encoder, name = (ImageEncoder(model), "images") if tower == "image" else (TextEncoder(model), "tokens")
    _write(encoder, name, batch[:2], path)
    return _reloaded(path, batch)


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
