"""Export to ONNX: one graph a tower, for batches of any size; every model can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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
from shards.errors import UserError

IMAGE_NAME, TEXT_NAME = "image_encoder.onnx", "text_encoder.onnx"


def export_onnx(loaded: LoadedModel, folder: str) -> Measured:
    """Write `image_encoder.onnx`, `text_encoder.onnx` if there is a text tower, and `config.json`.

    `images` (batch, 3, h, w) float32 → `image_embeddings` (batch, D) float32, and `tokens` (batch, context_length)
    int64 → `text_embeddings`; both of unit norm. `config.json` has the preprocessing and what makes logits of them:
    `logit_scale` · image · text + `logit_bias`.

    Returns the largest differences between the original and what onnxruntime computes, as `export_open_clip` does,
    `text_embedding` only of a model with a text tower. Raises as `export_open_clip` does, but for models that open_clip
    cannot build: all can be exported; and `UserError` if the ONNX packages are not installed.
    """
    _require_onnx(loaded.name)
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging:
        # Batches of 2 are exported, others compared: a batch size that became a constant would be found.
        pixels = shown(model, loaded.preprocess)[:2]
        _write(ImageEncoder(model), pixels, "images", "image_embeddings", staging / IMAGE_NAME)
        if has_text(model):
            tokens = loaded.tokenizer(CAPTIONS[:2])
            _write(TextEncoder(model), tokens, "tokens", "text_embeddings", staging / TEXT_NAME)
        write_config(staging, model, loaded)
        measured = compared(reference, _reloaded(model, loaded, staging))
        write_card(staging, loaded, "onnx", measured)
    return measured


def _require_onnx(where: str) -> None:
    try:
        import onnx  # noqa: F401, PLC0415 - optional
        import onnxruntime  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            f"the ONNX packages are not installed ({error.name} is missing)",
            where=where,
            do="Run `pip install 'clipstill[onnx]'`",
        ) from None


def _write(encoder: nn.Module, example: Tensor, takes: str, gives: str, path: Path) -> None:
    import onnx  # noqa: PLC0415 - optional

    with plain_operations():
        # By tracing: torch's newer exporter gave the same numbers on each kind of tower, and took ten times as long.
        torch.onnx.export(
            encoder.eval(),
            (example,),
            str(path),
            input_names=[takes],
            output_names=[gives],
            dynamic_axes={takes: {0: "batch"}, gives: {0: "batch"}},
            dynamo=False,
        )
    onnx.checker.check_model(str(path))


def _reloaded(model: Any, loaded: LoadedModel, folder: Path) -> Outputs:
    images = _run(folder / IMAGE_NAME, shown(model, loaded.preprocess))
    texts = _run(folder / TEXT_NAME, loaded.tokenizer(CAPTIONS)) if has_text(model) else None
    return Outputs(images, texts, logits_of(model, images, texts))


def _run(path: Path, batch: Tensor) -> Tensor:
    """Computed by onnxruntime, a batch of one and one of the rest."""
    import onnxruntime  # noqa: PLC0415 - optional

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    parts = [session.run(None, {taken.name: part.numpy()})[0] for part in (batch[:1], batch[1:])]
    return torch.from_numpy(np.concatenate(parts))
