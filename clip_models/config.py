"""What a model's configuration is, in open_clip's format: read, checked, completed."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from open_clip import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from clip_models.spec import CONFIG_NAME, WEIGHTS_NAME
from shards.errors import UserError
from shards.text import read_text

ModelConfig = dict[str, Any]
"""The content of an `open_clip_config.json`: `{"model_cfg": {...}, "preprocess_cfg": {...}}`.

That of a model without a text tower also has `"towers": ["image"]`. Of one without an image tower it is `["text"]`, and
`"cached_images": {"width", "head"}` says what image embeddings it was trained to meet.
"""


def read_config(path: Path) -> ModelConfig:
    do = f"A model folder holds {CONFIG_NAME} and {WEIGHTS_NAME}"
    config = read_json(path, do)
    if not isinstance(config.get("model_cfg"), dict):
        raise UserError("it has no model_cfg", where=str(path), do=do)
    check_model_cfg(config["model_cfg"], str(path))
    check_preprocess_cfg(config.get("preprocess_cfg") or {}, str(path))
    chosen = preprocess_cfg(config["model_cfg"], config.get("preprocess_cfg") or {})
    towers: ModelConfig = {name: config[name] for name in ("towers", "cached_images") if name in config}
    if has_no_image(config) and not _is_cached_images(config.get("cached_images")):
        raise UserError(
            f"cached_images is {config.get('cached_images')!r}", where=str(path), do='It has "width" and "head"'
        )
    return {"model_cfg": config["model_cfg"], "preprocess_cfg": chosen, **towers}


def has_no_text(config: ModelConfig) -> bool:
    return config.get("towers") == ["image"]


def has_no_image(config: ModelConfig) -> bool:
    return config.get("towers") == ["text"]


def _is_cached_images(given: Any) -> bool:
    known = isinstance(given, dict) and given.keys() == {"width", "head"}
    return known and type(given["width"]) is int and given["width"] > 0 and isinstance(given["head"], bool)


def preprocess_cfg(model_cfg: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """open_clip's defaults overridden by `chosen`, at the model's own image size; as JSON would give it back."""
    merged = merge_preprocess_dict(asdict(PreprocessCfg()), chosen)
    merged["size"] = model_cfg["vision_cfg"].get("image_size", 224)
    plain: dict[str, Any] = json.loads(json.dumps(merged))
    return plain


def read_json(path: Path, do: str) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path, do))
    except ValueError as error:
        raise UserError(f"not readable as JSON: {error}", where=str(path), do=do) from error
    if not isinstance(data, dict):
        raise UserError(f"it holds a {type(data).__name__}, not an object", where=str(path), do=do)
    return data


def check_model_cfg(model_cfg: dict[str, Any], where: str) -> None:
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    wrong = [field for field, kind in kinds.items() if not isinstance(model_cfg.get(field), kind)]
    if wrong:
        raise UserError(
            f"these fields are missing or of the wrong kind: {', '.join(wrong)}",
            where=where,
            do="A model has embed_dim (a number), vision_cfg and text_cfg (objects)",
        )
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        known = [field.name for field in fields(kind)]
        unknown = sorted(model_cfg[name].keys() - known)
        if unknown:
            close = difflib.get_close_matches(unknown[0], known, n=1)
            do = f"Did you mean {close[0]}?" if close else f"There are {', '.join(known)}"
            raise UserError(f"{name} has no field {unknown[0]!r}", where=where, do=do)


def check_preprocess_cfg(chosen: Any, where: str) -> None:
    """Raise `UserError` unless it is an object whose fields open_clip's preprocessing can use."""
    if not isinstance(chosen, dict):
        raise UserError(f"preprocess_cfg is a {type(chosen).__name__}, not an object", where=where)
    for name in ("mean", "std"):
        values = chosen.get(name)
        three = isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
        if values is not None and not three:
            raise UserError(f"preprocess_cfg has {name} {values!r}", where=where, do="Give three numbers")
    for name, known in (
        ("interpolation", ("bicubic", "bilinear", "random")),
        ("resize_mode", ("shortest", "longest", "squash")),
    ):
        value = chosen.get(name)
        if value is not None and value not in known:
            raise UserError(f"preprocess_cfg has {name} {value!r}", where=where, do=f"It is one of {', '.join(known)}")
