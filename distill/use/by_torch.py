"""Students that torch computes: model folders, and exports for transformers and TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_models import load_model
from distill.use.encoders import Encoders, Rows
from distill.use.text import TOKENIZER_NAME, TextTokens, read_settings


def open_model(spec: str | Path, device: str | None = None) -> Encoders:
    """Any spec of `clip_models.load_model`: what open_clip can build, and what Clipstill adds to that.

    `device`: of torch's; None is the accelerator, where there is one.
    """
    chosen = _device(device)
    loaded = load_model(str(spec), chosen)
    model, bias = loaded.model, getattr(loaded.model, "logit_bias", None)

    def texts(batch: list[str]) -> Tensor:
        rows: Tensor = model.encode_text(loaded.tokenizer(batch).to(chosen), normalize=True)
        return rows

    return Encoders(
        images=_images(lambda pixels: model.encode_image(pixels, normalize=True), chosen),
        texts=_rows(texts) if hasattr(model, "encode_text") else None,
        scale=model.logit_scale.exp().item(),
        bias=0.0 if bias is None else bias.item(),
        preprocess_cfg=loaded.config["preprocess_cfg"],
    )


def _device(device: str | None) -> str:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _images(encode: Callable[[Tensor], Tensor], device: str) -> Callable[[Rows], Rows]:
    return _rows(lambda pixels: encode(torch.from_numpy(pixels).to(device)))


def _rows(encode: Callable[[Any], Tensor]) -> Callable[[Any], Rows]:
    """Without gradients, as numpy's float32."""

    def encoded(batch: Any) -> Rows:
        with torch.inference_mode():
            rows: Rows = encode(batch).float().cpu().numpy()
        return rows

    return encoded


def open_transformers(folder: Path, device: str | None = None) -> Encoders:
    """A folder of transformers' CLIPModel, with its processor's files."""
    from transformers import CLIPModel, CLIPTokenizer  # noqa: PLC0415 - slow

    chosen = _device(device)
    with quiet_transformers():
        model = CLIPModel.from_pretrained(folder).to(chosen).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def texts(batch: list[str]) -> Tensor:
        tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(chosen)
        return normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)

    def images(pixels: Tensor) -> Tensor:
        return normalize(model.visual_projection(model.vision_model(pixels).pooler_output), dim=-1)

    return Encoders(
        images=_images(images, chosen),
        texts=_rows(texts),
        scale=model.logit_scale.exp().item(),
        bias=0.0,
        preprocess_cfg=_of_processor(read_settings(folder / "preprocessor_config.json")),
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its progress bars, one a file."""
    from transformers.utils import logging  # noqa: PLC0415

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _of_processor(settings: dict[str, Any]) -> dict[str, Any]:
    """A CLIPImageProcessor's settings as open_clip calls them."""
    size, crop = settings["size"], settings["crop_size"]
    squash = isinstance(size, dict) and "shortest_edge" not in size
    return {
        "size": [crop["height"], crop["width"]] if isinstance(crop, dict) else crop,
        "mean": settings["image_mean"],
        "std": settings["image_std"],
        "interpolation": "bilinear" if settings.get("resample") == 2 else "bicubic",
        "resize_mode": "squash" if squash else "shortest",
    }


def open_torchscript(folder: Path, device: str | None = None) -> Encoders:
    """What `distill.export.to_torchscript` writes."""
    chosen, config = _device(device), read_settings(folder / "config.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about TorchScript
        model: Any = torch.jit.load(str(folder / "model.pt"), map_location=chosen)  # type: ignore[no-untyped-call]
    texts = None
    if (folder / TOKENIZER_NAME).is_file():
        tokens = TextTokens(folder, config["model_cfg"]["text_cfg"])
        texts = _rows(lambda batch: model.text_encoder(torch.from_numpy(tokens(batch)).to(chosen)))
    return Encoders(
        images=_images(model.image_encoder, chosen),
        texts=texts,
        scale=config["logit_scale"],
        bias=config["logit_bias"],
        preprocess_cfg=config["preprocess_cfg"],
    )


def open_pt2(folder: Path, device: str | None = None) -> Encoders:
    """What `distill.export.to_pt2` writes."""
    chosen, config = _device(device), read_settings(folder / "config.json")
    images, texts = _program(folder / "image_encoder.pt2", chosen), None
    if (folder / "text_encoder.pt2").is_file():
        tokens = TextTokens(folder, config["model_cfg"]["text_cfg"])
        encode = _program(folder / "text_encoder.pt2", chosen)
        texts = _rows(lambda batch: encode(torch.from_numpy(tokens(batch)).to(chosen)))
    return Encoders(
        images=_images(images, chosen),
        texts=texts,
        scale=config["logit_scale"],
        bias=config["logit_bias"],
        preprocess_cfg=config["preprocess_cfg"],
    )


def _program(path: Path, device: str) -> Any:
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415

    program = torch.export.load(path)
    return (program if device == "cpu" else move_to_device_pass(program, device)).module()
