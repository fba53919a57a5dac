"""Export in Immich's layout (github.com/immich-app/immich, `machine-learning/`): a graph a tower, of one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from open_clip.utils import to_2tuple
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
    scale_and_bias,
    shown,
)
from distill.export.encoders import ImageEncoder, TextEncoder
from distill.export.graphs import require_onnx, run_graph, session, write_graph
from distill.export.staging import staged
from distill.export.tokenizer_file import write_tokenizer
from distill.use.text import TextTokens
from shards.errors import UserError

MODEL, CONFIG = "model.onnx", "config.json"
TEXTUAL, VISUAL = "textual", "visual"


def export_immich(loaded: LoadedModel, folder: str) -> Measured:
    """Write `config.json` (open_clip's model_cfg; logit scale and bias), and a `model.onnx` with its settings in
    `textual/` and in `visual/`.

    `textual/model.onnx`: int32 `text` (1, context_length) → `embedding` (1, D); `visual/model.onnx`: float32 `image`
    (1, 3, h, w) → `embedding` (1, D); both of unit norm.

    Returns what `export_onnx` does. Raises as `export_onnx` does, and `UserError` of a model without a text tower, or
    of one whose pictures are not square, or are filled up (`longest`), which Immich cannot do.
    """
    require_onnx(loaded.name)
    _refuse_inexpressible(loaded)
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    pixels, ids = shown(model, loaded.preprocess), loaded.tokenizer(CAPTIONS)
    with staged(folder) as staging:
        for name in (TEXTUAL, VISUAL):
            (staging / name).mkdir()
        write_graph(ImageEncoder(model), {"image": pixels[:1]}, ["embedding"], staging / VISUAL / MODEL, {})
        write_graph(_Int32Texts(model), {"text": ids[:1].int()}, ["embedding"], staging / TEXTUAL / MODEL, {})
        differing = _write_settings(staging, loaded)
        tokens = torch.from_numpy(TextTokens(staging / TEXTUAL, _text_cfg(loaded))(CAPTIONS)).int()
        images = _one_by_one(staging / VISUAL / MODEL, "image", pixels)
        texts = _one_by_one(staging / TEXTUAL / MODEL, "text", tokens)
        measured = compared(reference, Outputs(images, texts, logits_of(model, images, texts)))
        counted = {"captions": len(CAPTIONS), "captions_tokenised_differently": differing}
        write_card(staging, loaded, "immich", {**measured, **counted})
    return {**measured, **counted}


def notes(_loaded: LoadedModel) -> str:
    """What Immich itself makes of it."""
    return (
        "In Immich: put this folder into its model cache, as `clip/NAME/`, and set NAME as the CLIP model. Onnxruntime "
        "computed it here as Immich would; Immich itself was not run."
    )


class _Int32Texts(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = TextEncoder(model)

    def forward(self, text: Tensor) -> Tensor:
        rows: Tensor = self.encoder(text.long())
        return rows


def _refuse_inexpressible(loaded: LoadedModel) -> None:
    chosen = loaded.config["preprocess_cfg"]
    checks = [
        (not has_text(loaded.model), "it has no text tower"),
        (chosen["resize_mode"] == "longest", "its preprocessing pads the image (longest)"),
        (len(set(to_2tuple(chosen["size"]))) > 1, "its images are not square"),
    ]
    reason = next((reason for wrong, reason in checks if wrong), None)
    if reason is not None:
        raise UserError(f"Immich cannot use this model: {reason}", where=loaded.name, do="Export it as onnx")


def _text_cfg(loaded: LoadedModel) -> dict[str, Any]:
    text_cfg: dict[str, Any] = loaded.config["model_cfg"]["text_cfg"]
    return text_cfg


def _write_settings(folder: Path, loaded: LoadedModel) -> int:
    """Returns how many captions its tokenizer encodes in another way, for want of open_clip's cleaning."""
    from tokenizers import Tokenizer  # noqa: PLC0415

    differing = write_tokenizer(folder / TEXTUAL, loaded) or 0
    pad = Tokenizer.from_file(str(folder / TEXTUAL / "tokenizer.json")).id_to_token(int(loaded.tokenizer([""])[0, -1]))
    length = _text_cfg(loaded).get("context_length", 77)
    scale, bias = scale_and_bias(loaded.model)
    for path, body in (
        (folder / CONFIG, {**loaded.config["model_cfg"], "logit_scale": scale, "logit_bias": bias}),
        (folder / TEXTUAL / "tokenizer_config.json", {"pad_token": pad, "model_max_length": length}),
        (folder / VISUAL / "preprocess_cfg.json", loaded.config["preprocess_cfg"]),
    ):
        path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return differing


def _one_by_one(path: Path, takes: str, batch: Tensor) -> Tensor:
    running = session(path)
    return torch.cat([run_graph(running, {takes: row[None].numpy()})[0] for row in batch])
