"""Export for transformers.js and ONNX Runtime Web: graphs where they look for them, each in five smaller variants."""

from __future__ import annotations

import json
import shutil
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
    on_cpu,
    reference_outputs,
    scale_and_bias,
    shown,
)
from distill.export.encoders import ImageEncoder, TextEncoder
from distill.export.graphs import require_onnx, run_graph, run_in_parts, session, write_graph
from distill.export.small import Calibration, Losses, Towers, calibrate_tower, measure_losses, refuse_lossy
from distill.export.staging import staged
from distill.export.tokenizer_file import END, START, write_tokenizer
from distill.export.variants import VARIANTS
from shards.errors import UserError

ONNX = "onnx"
MODEL, TEXT, VISION = "model.onnx", "text_model.onnx", "vision_model.onnx"
TRY_NAME = "try.html"
_PAGE = Path(__file__).parent / TRY_NAME


def export_transformers_js(loaded: LoadedModel, folder: str, calibration: Calibration | None = None) -> Measured:
    """Write a folder for `pipeline("zero-shot-image-classification", FOLDER)` of transformers.js.

    In `onnx/`: `model.onnx` takes `input_ids`, `attention_mask` and `pixel_values` and gives `logits_per_image`,
    `logits_per_text`, `text_embeds` and `image_embeds`; `text_model.onnx` and `vision_model.onnx` give one tower's
    embeddings; all of unit norm, for any batch and texts of any length up to the context. Beside each are the variants
    `_fp16`, `_quantized`, `_int8`, `_uint8` and `_q4`, of which the 8-bit ones are
    calibrated if `calibration` is given. `try.html` is a page to drop
    a picture on.

    Returns what `export_onnx` does. Raises as `export_onnx` does, and `UserError` of a model without a text tower, or
    of one whose pictures are filled up (`longest`), which transformers.js cannot do.
    """
    require_onnx(loaded.name)
    _refuse_inexpressible(loaded)
    model = on_cpu(loaded)
    reference = reference_outputs(model, loaded)
    with staged(folder) as staging:
        onnx = staging / ONNX
        onnx.mkdir()
        _write_graphs(model, loaded, onnx)
        differing = write_tokenizer(staging, loaded)
        _write_settings(staging, model, loaded)
        measured = compared(reference, _reloaded(model, loaded, onnx))
        losses = _variants(onnx, loaded, calibration)
        shutil.copy(_PAGE, staging / TRY_NAME)
        counted = {"captions": len(CAPTIONS), "captions_tokenised_differently": differing or 0}
        write_card(staging, loaded, "transformers_js", {**measured, **counted}, losses=losses)
    return {**measured, **counted}


def _refuse_inexpressible(loaded: LoadedModel) -> None:
    reason = None
    if not has_text(loaded.model):
        reason = "it has no text tower"
    elif loaded.config["preprocess_cfg"]["resize_mode"] == "longest":
        reason = "its preprocessing pads the image (longest)"
    elif len(set(to_2tuple(loaded.config["preprocess_cfg"]["size"]))) > 1 and not _squashes(loaded):
        reason = "its images are not square, and their middle is cut out"
    if reason is not None:
        raise UserError(f"transformers.js cannot use this model: {reason}", where=loaded.name, do="Export it as onnx")


def _squashes(loaded: LoadedModel) -> bool:
    return bool(loaded.config["preprocess_cfg"]["resize_mode"] == "squash")


class _Padded(nn.Module):
    """The text tower of ids of any length: filled up to the context as open_clip fills them, and ended as it ends them.

    transformers.js cuts off a long text's end token, too.
    """

    def __init__(self, model: Any, loaded: LoadedModel) -> None:
        super().__init__()
        self.encoder = TextEncoder(model)
        self.pads: Tensor
        self.end = _end(loaded)
        length = loaded.tokenizer([""]).shape[1]
        self.register_buffer("pads", torch.full((1, length), _pad(loaded)))

    def forward(self, ids: Tensor) -> Tensor:
        pads = self.pads
        whole = torch.cat([ids, pads.expand(ids.shape[0], pads.shape[1])], dim=1)[:, : pads.shape[1]]
        if self.end is not None:
            last = whole[:, -1:]
            ended = torch.where(last == pads[:, :1], last, torch.full_like(last, self.end))
            whole = torch.cat([whole[:, :-1], ended], dim=1)
        rows: Tensor = self.encoder(whole)
        return rows


class _Pairs(nn.Module):
    def __init__(self, model: Any, texts: _Padded) -> None:
        super().__init__()
        self.images, self.texts = ImageEncoder(model), texts
        self.scale, self.bias = scale_and_bias(model)

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pads = self.texts.pads
        texts = self.texts(torch.where(mask > 0, ids, pads[:, :1]))
        images = self.images(pixels)
        logits = self.scale * images @ texts.T + self.bias
        return logits, logits.T, texts, images


def _write_graphs(model: Any, loaded: LoadedModel, onnx: Path) -> None:
    ids = loaded.tokenizer(CAPTIONS[:2])
    pixels = shown(model, loaded.preprocess)[:3]
    texts = _Padded(model, loaded)
    few = {0: "text_batch", 1: "length"}
    write_graph(ImageEncoder(model), {"pixel_values": pixels}, ["image_embeds"], onnx / VISION)
    axes = {"input_ids": few, "text_embeds": {0: "text_batch"}}
    write_graph(texts, {"input_ids": ids}, ["text_embeds"], onnx / TEXT, axes)
    write_graph(
        _Pairs(model, texts),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels},
        ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
        onnx / MODEL,
        {
            **axes,
            "attention_mask": few,
            "pixel_values": {0: "image_batch"},
            "image_embeds": {0: "image_batch"},
            "logits_per_image": {0: "image_batch", 1: "text_batch"},
            "logits_per_text": {0: "text_batch", 1: "image_batch"},
        },
    )


def _pad(loaded: LoadedModel) -> int:
    return int(loaded.tokenizer([""])[0, -1])


def _end(loaded: LoadedModel) -> int | None:
    """What each text ends with that is too long, None if that is a part of the text."""
    one, other = loaded.tokenizer(["cat " * 1000, "dog " * 1000])[:, -1].tolist()
    return int(one) if one == other else None


def _reloaded(model: Any, loaded: LoadedModel, onnx: Path) -> Outputs:
    """By onnxruntime, the towers and the whole, texts also cut to their own lengths."""
    pixels, ids = shown(model, loaded.preprocess), loaded.tokenizer(CAPTIONS)
    images, texts = run_in_parts(onnx / VISION, pixels), run_in_parts(onnx / TEXT, ids)
    pad = _pad(loaded)
    longest = int((ids[:2] != pad).sum(dim=1).max())
    feeds = {"input_ids": ids, "attention_mask": (ids != pad).long(), "pixel_values": pixels}
    running = session(onnx / MODEL)
    logits, swapped, text_embeds, image_embeds = run_graph(
        running, {name: part.numpy() for name, part in feeds.items()}
    )
    feeds = {
        "input_ids": ids[:2, :longest],
        "attention_mask": torch.ones(2, longest).long(),
        "pixel_values": pixels[:1],
    }
    short = run_graph(running, {name: part.numpy() for name, part in feeds.items()})[2]
    # A long text without its end, as transformers.js gives it.
    cut = loaded.tokenizer(["cat " * 1000])
    endless = cut.clone()
    endless[:, -1] = cut[:, -2]
    ends = [run_in_parts(onnx / TEXT, torch.cat([one, one])) for one in (cut, endless)]
    for one, other in (
        (text_embeds, texts),
        (image_embeds, images),
        (swapped.T, logits),
        (short, texts[:2]),
        *([tuple(ends)] if _end(loaded) is not None else []),
    ):
        if not torch.allclose(one, other, atol=1e-3 * max(1.0, other.abs().max().item()), rtol=0):
            raise RuntimeError("the graphs of the export do not agree with each other")
    return Outputs(images, texts, logits)


def _variants(onnx: Path, loaded: LoadedModel, calibration: Calibration | None) -> Losses:
    """Every variant of every graph, and what it loses. With pairs those of 8 bits are calibrated, but for unsigned."""
    calibrated = ("quantized", "int8") if calibration else ()
    for suffix, make in VARIANTS.items():
        for name in (MODEL, TEXT, VISION):
            out = _variant(onnx / name, suffix)
            if suffix == "int8":
                shutil.copyfile(_variant(onnx / name, "quantized"), out)
            elif calibration and suffix in calibrated:
                calibrate_tower(onnx / name, out, loaded, calibration)
            else:
                make(onnx / name, out)
    towers = {"float32": Towers(onnx / VISION, onnx / TEXT)}
    for suffix in VARIANTS:
        if suffix != "int8":  # what quantized is
            towers[f"_{suffix}"] = Towers(_variant(onnx / VISION, suffix), _variant(onnx / TEXT, suffix))
    losses = measure_losses(towers, loaded, calibration, ["_quantized", "_int8"])
    if calibration:
        refuse_lossy(losses, "_quantized", calibration, loaded.name)
    return losses


def _variant(path: Path, suffix: str) -> Path:
    return path.with_stem(f"{path.stem}_{suffix}")


def _write_settings(folder: Path, model: Any, loaded: LoadedModel) -> None:
    """What transformers.js reads beside the graphs; the sizes of towers it does not ask for."""
    model_cfg, chosen = loaded.config["model_cfg"], loaded.config["preprocess_cfg"]
    scale, bias = scale_and_bias(model)
    height, width = to_2tuple(chosen["size"])
    length = model_cfg["text_cfg"].get("context_length", 77)
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": model_cfg["embed_dim"],
        "logit_scale": scale,
        "logit_bias": bias,
        "text_config": {"model_type": "clip_text_model", "max_position_embeddings": length},
        "vision_config": {"model_type": "clip_vision_model", "image_size": chosen["size"]},
        **loaded.config,
    }
    square = {"height": height, "width": width}
    squash = _squashes(loaded)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "feature_extractor_type": "CLIPFeatureExtractor",
        "do_resize": True,
        "size": square if squash else {"shortest_edge": height},
        "do_center_crop": not squash,
        "crop_size": square,
        "resample": 2 if chosen["interpolation"] == "bilinear" else 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": chosen["mean"],
        "image_std": chosen["std"],
        "do_convert_rgb": True,
    }
    named = bool(model_cfg["text_cfg"].get("hf_tokenizer_name"))
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast" if named else "CLIPTokenizer",
        "model_max_length": length,
        "pad_token": _token(folder, _pad(loaded)),
        **({} if named else {"bos_token": START, "eos_token": END, "unk_token": END}),
    }
    for name, body in (
        ("config.json", config),
        ("preprocessor_config.json", processor),
        ("tokenizer_config.json", tokenizer),
    ):
        (folder / name).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def _token(folder: Path, number: int) -> str:
    from tokenizers import Tokenizer  # noqa: PLC0415

    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).id_to_token(number))


def notes(_loaded: LoadedModel) -> str:
    """How it is used in JavaScript."""
    return f"""In JavaScript, in node or in a page:

```js
import {{ pipeline }} from "@huggingface/transformers";

const classify = await pipeline("zero-shot-image-classification", "FOLDER", {{ dtype: "q8" }});
const found = await classify("picture.jpg", ["cat", "dog"], {{ hypothesis_template: "a photo of a {{}}" }});
```

`dtype` is one of fp32, fp16, q8, int8, uint8 and q4. To try it in a browser: `python -m http.server` in this folder,
and the page `http://localhost:8000/{TRY_NAME}`."""
