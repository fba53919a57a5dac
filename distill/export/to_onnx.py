"""Export to ONNX: one graph a tower, for batches of any size; every model can be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from distill.export.encoders import ImageEncoder, TextEncoder, write_config
from distill.export.graphs import require_onnx, run_in_parts, write_graph
from distill.export.small import Calibration, Losses, Towers, calibrate_tower, measure_losses, refuse_lossy
from distill.export.staging import staged

IMAGE_NAME, TEXT_NAME = "image_encoder.onnx", "text_encoder.onnx"


def export_onnx(loaded: LoadedModel, folder: str, calibration: Calibration | None = None) -> Measured:
    """Write `image_encoder.onnx`, `text_encoder.onnx` if there is a text tower, and `config.json`.

    `images` (batch, 3, h, w) float32 → `image_embeddings` (batch, D) float32, and `tokens` (batch, context_length)
    int64 → `text_embeddings`; both of unit norm. `config.json` has the preprocessing and what makes logits of them:
    `logit_scale` · image · text + `logit_bias`. With `calibration` also `image_encoder_int8.onnx` and
    `text_encoder_int8.onnx`, whose loss the card states.

    Returns the largest differences between the original and what onnxruntime computes, as `export_open_clip` does,
    `text_embedding` only of a model with a text tower. Raises as `export_open_clip` does, but for models that open_clip
    cannot build: all can be exported; and `UserError` if the ONNX packages are not installed, or if 8 bits lose
    more than `calibration` allows.
    """
    require_onnx(loaded.name)
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging:
        # Batches of 2 are exported, others compared: a batch size that became a constant would be found.
        pixels = shown(model, loaded.preprocess)[:2]
        write_graph(ImageEncoder(model), {"images": pixels}, ["image_embeddings"], staging / IMAGE_NAME)
        if has_text(model):
            tokens = loaded.tokenizer(CAPTIONS[:2])
            write_graph(TextEncoder(model), {"tokens": tokens}, ["text_embeddings"], staging / TEXT_NAME)
        write_config(staging, model, loaded)
        measured = compared(reference, _reloaded(model, loaded, staging))
        losses = _int8(model, loaded, staging, calibration) if calibration else None
        write_card(staging, loaded, "onnx", measured, losses=losses)
    return measured


def _reloaded(model: Any, loaded: LoadedModel, folder: Path) -> Outputs:
    images = run_in_parts(folder / IMAGE_NAME, shown(model, loaded.preprocess))
    texts = run_in_parts(folder / TEXT_NAME, loaded.tokenizer(CAPTIONS)) if has_text(model) else None
    return Outputs(images, texts, logits_of(model, images, texts))


def _int8(model: Any, loaded: LoadedModel, folder: Path, calibration: Calibration) -> Losses:
    names = [IMAGE_NAME, TEXT_NAME] if has_text(model) else [IMAGE_NAME]
    plain = [folder / name for name in names]
    small = [path.with_stem(f"{path.stem}_int8") for path in plain]
    for source, out in zip(plain, small, strict=True):
        calibrate_tower(source, out, loaded, calibration)
    losses = measure_losses({"float32": Towers(*plain), "int8": Towers(*small)}, loaded, calibration, ["int8"])
    refuse_lossy(losses, "int8", calibration, loaded.name)
    return losses
