"""Students that onnxruntime computes, without torch: exports for ONNX, transformers.js and Immich."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.use.encoders import Encoders, Rows
from distill.use.text import TextTokens, read_settings
from shards.errors import UserError


def open_onnx(folder: Path, device: str | None = None) -> Encoders:
    """What `distill.export.to_onnx` writes."""
    return open_towers(folder, folder / "image_encoder.onnx", folder / "text_encoder.onnx", device)


def open_transformers_js(folder: Path, device: str | None = None) -> Encoders:
    """What `distill.export.to_transformers_js` writes, in float32."""
    return open_towers(folder, folder / "onnx" / "vision_model.onnx", folder / "onnx" / "text_model.onnx", device)


def open_immich(folder: Path, device: str | None = None) -> Encoders:
    """What `distill.export.to_immich` writes, which takes one at a time."""
    config, textual = read_settings(folder / "config.json"), folder / "textual"
    texts = _texts(textual / "model.onnx", textual, config["text_cfg"], device)
    images = _run(_session(folder / "visual" / "model.onnx", device))
    return Encoders(
        images=lambda pixels: np.concatenate([images(row[None]) for row in pixels]),
        texts=lambda batch: np.concatenate([texts([text]) for text in batch]),
        scale=config["logit_scale"],
        bias=config["logit_bias"],
        preprocess_cfg=read_settings(folder / "visual" / "preprocess_cfg.json"),
    )


def open_towers(folder: Path, image: Path, text: Path, device: str | None) -> Encoders:
    """Two graphs beside a `config.json` and a `tokenizer.json`; `text` need not be there."""
    config = read_settings(folder / "config.json")
    return Encoders(
        images=_run(_session(image, device)),
        texts=_texts(text, folder, config["model_cfg"]["text_cfg"], device) if text.exists() else None,
        scale=config["logit_scale"],
        bias=config["logit_bias"],
        preprocess_cfg=config["preprocess_cfg"],
    )


def _texts(path: Path, folder: Path, text_cfg: dict[str, Any], device: str | None) -> Callable[[list[str]], Rows]:
    tokens, encode = TextTokens(folder, text_cfg), _run(_session(path, device))
    return lambda batch: encode(tokens(batch))


def _session(path: Path, device: str | None) -> Any:
    """An onnxruntime session, of a GPU where it is asked for or there."""
    try:
        import onnxruntime  # noqa: PLC0415 - optional
    except ImportError:
        do = "Run `pip install 'clipstill[onnx]'`"
        raise UserError(
            "the ONNX packages are not installed (onnxruntime is missing)", where=str(path), do=do
        ) from None
    there = onnxruntime.get_available_providers()
    wanted = [] if device == "cpu" else [name for name in ("CUDAExecutionProvider",) if name in there]
    try:
        return onnxruntime.InferenceSession(str(path), providers=[*wanted, "CPUExecutionProvider"])
    except Exception as error:  # its own family of exceptions, a class for each status
        reason = " ".join(str(error).split())
        raise UserError(f"onnxruntime cannot load it ({reason})", where=str(path), do="Export it again") from error


def _run(session: Any) -> Callable[[Any], Rows]:
    (taken,) = session.get_inputs()
    kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}.get(taken.type, np.float32)

    def run(batch: Any) -> Rows:
        rows: Rows = session.run(None, {taken.name: batch.astype(kind)})[0].astype(np.float32)
        return rows

    return run
