"""What exports of a file a tower have in common: each is written, read again, and compared with the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

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
from distill.export.encoders import write_config
from distill.export.staging import staged

Tower = Literal["image", "text"]

Convert = Callable[[Tower, Any, Tensor, Path], Tensor]
"""Write a tower of a model into a folder; returns (n, D), what it computes, read again, of a batch: (n, 3, h, w)
float32, or (n, context_length) int64."""


def export_by_tower(
    loaded: LoadedModel, folder: str, kind: str, convert: Convert, *, checked: str | None = None
) -> Measured:
    """Export as `kind` into `folder`, whole or not at all; `checked` is what the card says of how it was compared.

    Returns what `export_onnx` does. Raises as `export_open_clip` does, but for models that open_clip cannot build.
    """
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging:
        texts = convert("text", model, loaded.tokenizer(CAPTIONS), staging) if has_text(model) else None
        images = convert("image", model, shown(model, loaded.preprocess), staging)
        write_config(staging, model, loaded)
        measured = compared(reference, Outputs(images, texts, logits_of(model, images, texts)))
        write_card(staging, loaded, kind, measured, checked=checked)
    return measured
