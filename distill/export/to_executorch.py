"""Export for ExecuTorch, PyTorch's runtime for phones: a .pte a tower, of one picture and of one text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from clip_models import LoadedModel
from distill.export.by_tower import Tower, export_by_tower
from distill.export.compare import Measured
from distill.export.encoders import ImageEncoder, TextEncoder
from distill.export.packages import require
from distill.export.to_pt2 import exported


def export_executorch(loaded: LoadedModel, folder: str) -> Measured:
    """Write `image_encoder.pte`, `text_encoder.pte` if there is a text tower, and `config.json` with the preprocessing.

    (1, 3, h, w) float32, or (1, context_length) int64 → (1, D) float32 of unit norm. What XNNPACK can compute on a
    CPU, it does; the rest are ExecuTorch's portable kernels.

    Returns what `export_onnx` does, by ExecuTorch's own runtime. Raises as `export_open_clip` does, but for models that
    open_clip cannot build; and `UserError` if ExecuTorch is not installed.
    """
    require("executorch", "executorch", loaded.name)
    return export_by_tower(loaded, folder, "executorch", _converted)


def _converted(tower: Tower, model: Any, batch: Tensor, folder: Path) -> Tensor:
    path = folder / f"{tower}_encoder.pte"
    if tower == "image":
        _write(reparameterize_model(ImageEncoder(model)), "images", batch[:1], path)
    else:
        _write(TextEncoder(model), "tokens", batch[:1], path)
    return _one_by_one(path, batch)


def _write(encoder: nn.Module, name: str, example: Tensor, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415 - optional
    from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415

    program = exported(encoder, name, example, None)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _one_by_one(path: Path, batch: Tensor) -> Tensor:
    from executorch.runtime import Runtime  # noqa: PLC0415 - optional

    method: Any = Runtime.get().load_program(path).load_method("forward")
    return torch.cat([method.execute([row[None]])[0].clone() for row in batch])
