"""What torchscript and onnx exports are made of: a model's two towers, each a function from a batch to embeddings."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip_models import LoadedModel
from distill.export.compare import has_text, scale_and_bias
from distill.export.tokenizer_file import write_tokenizer

CONFIG_NAME = "config.json"


class ImageEncoder(nn.Module):
    """The image tower alone: (n, 3, h, w) float32 → (n, D) float32 of unit norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = _part(model, image=True)

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_image(images, normalize=True)
        return embeddings


class TextEncoder(nn.Module):
    """The text tower alone: (n, context_length) int64 → (n, D) float32 of unit norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = _part(model, image=False)

    def forward(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.model.encode_text(tokens, normalize=True)
        return embeddings


def _part(model: Any, *, image: bool) -> Any:
    """The model without the other tower, whose weights a traced module would carry along; tensors are shared."""
    part = copy.copy(model)
    part._modules = {name: child for name, child in model._modules.items() if (name == "visual") == image}
    kept = {} if image else model._parameters
    part._parameters = {name: value for name, value in kept.items() if name not in {"logit_scale", "logit_bias"}}
    part._buffers = {} if image else dict(model._buffers)
    return part


def write_config(folder: Path, model: Any, loaded: LoadedModel) -> None:
    """What a user needs beside the graphs: preprocessing, logit scale and bias; and the tokenizer."""
    scale, bias = scale_and_bias(model)
    body = {**loaded.config, "logit_scale": scale, "logit_bias": bias}
    (folder / CONFIG_NAME).write_text(json.dumps(body, indent=2) + "\n")
    if has_text(model) and hasattr(loaded.tokenizer, "save_pretrained"):
        loaded.tokenizer.save_pretrained(str(folder))
    write_tokenizer(folder, loaded)


@contextmanager
def plain_operations() -> Iterator[None]:
    """No gradients, no fused attention (which other runtimes do not have), no warnings of torch about its own tracing.

    They say that tracing is to be replaced, and where a shape or a branch may become a constant. That would be found by
    the comparison afterwards, which runs other batch sizes than were traced.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
