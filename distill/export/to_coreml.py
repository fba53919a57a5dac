"""Export for Core ML, on iPhones and Macs: an mlpackage a tower, of one picture and of one text."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from clip_models import LoadedModel
from distill.export.by_tower import Tower, export_by_tower
from distill.export.compare import Measured
from distill.export.encoders import ImageEncoder, TextEncoder
from distill.export.packages import require
from distill.export.to_pt2 import exported

_ON_A_MAC = sys.platform == "darwin"


def export_coreml(loaded: LoadedModel, folder: str) -> Measured:
    """Write `image_encoder.mlpackage`, `text_encoder.mlpackage` if there is a text tower, and `config.json`.

    `image` (1, 3, h, w) float32, or `prompt` (1, context_length) int32 → `embedding` (1, D) float32 of unit norm; for
    iOS 16 and macOS 13 on.

    Returns what `export_onnx` does. Core ML computes on macOS alone: elsewhere the figures are those of the program
    that was converted, computed by torch, and the card says so. Raises as `export_open_clip` does, but for models that
    open_clip cannot build; and `UserError` if coremltools is not installed.
    """
    require("coremltools", "coreml", loaded.name)
    return export_by_tower(loaded, folder, "coreml", _converted, checked=_checked())


def _converted(tower: Tower, model: Any, batch: Tensor, folder: Path) -> Tensor:
    path = folder / f"{tower}_encoder.mlpackage"
    if tower == "image":
        return _made(_Image(model), "image", batch, path)
    return _made(_Prompt(model), "prompt", batch.int(), path)


class _Image(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        # MobileOne's and RepVGG's branches as one convolution each.
        self.encoder = reparameterize_model(ImageEncoder(model))

    def forward(self, image: Tensor) -> Tensor:
        rows: Tensor = self.encoder(image)
        return rows


class _Prompt(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = TextEncoder(model)

    def forward(self, prompt: Tensor) -> Tensor:
        rows: Tensor = self.encoder(prompt.long())
        return rows


def _checked() -> str | None:
    if _ON_A_MAC:
        return None
    return (
        "coremltools converted it and read it again, but Core ML computes on macOS alone, where it was not exported: "
        "the figures are of the program that was converted, computed by torch. Compare on a Mac before you rely on it."
    )


def _made(encoder: nn.Module, name: str, batch: Tensor, path: Path) -> Tensor:
    """Write one tower; returns what Core ML, or else the program that was converted, computes of the batch."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # of versions, and of what only a Mac has
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools  # noqa: PLC0415 - optional

        # By torch.export: traced graphs fail in coremltools 9 on numpy 2.
        program = exported(encoder, name, batch[:1], None).run_decompositions({})
        with contextlib.redirect_stderr(io.StringIO()):  # its bars, three for each tower
            made = coremltools.convert(
                program,
                outputs=[coremltools.TensorType(name="embedding")],
                convert_to="mlprogram",
                minimum_deployment_target=coremltools.target.iOS16,
                compute_precision=coremltools.precision.FLOAT32,
            )
        made.save(str(path))
        again = coremltools.models.MLModel(str(path))
    described = again.get_spec().description
    (taken,), (given,) = described.input, described.output
    if (taken.name, given.name, list(taken.type.multiArrayType.shape)) != (name, "embedding", [1, *batch.shape[1:]]):
        raise RuntimeError(f"coremltools reads {taken.name} and {given.name} again in place of {name} and embedding")
    if _ON_A_MAC:
        rows = [again.predict({name: row[None].numpy()})["embedding"] for row in batch]
        return torch.from_numpy(np.concatenate(rows))
    with torch.no_grad():
        module = program.module()
        return torch.cat([module(row[None]) for row in batch])
