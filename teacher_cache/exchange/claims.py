"""Check what is said about somebody else's embeddings (model, width, image size, preprocessing), as far as the model's
configuration tells: its weights are not loaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from shards import UserError


class Known(NamedTuple):
    """Of a model: columns of its embeddings, side in pixels of what it sees, whether it squashes; None: not known."""

    width: int | None = None
    image_size: int | None = None
    squashes: bool | None = None


def known_of(spec: str) -> Known:
    """What open_clip's configurations, or a folder's, say of a teacher's spec; all None where they do not know it."""
    import open_clip  # noqa: PLC0415 - slow

    name, _, tag = spec.removeprefix("local-dir:").partition(":")
    if name == "transformers":
        return Known(_read(Path(tag, "config.json")).get("projection_dim"))
    if Path(spec.removeprefix("local-dir:")).is_dir():
        config = _read(Path(spec.removeprefix("local-dir:"), "open_clip_config.json"))
        model, mode = config.get("model_cfg"), (config.get("preprocess_cfg") or {}).get("resize_mode")
    else:
        architecture = name.replace("/", "-")
        model, published = open_clip.get_model_config(architecture), open_clip.get_pretrained_cfg(architecture, tag)
        mode = (published.get("resize_mode") or "shortest") if published else None
    if not isinstance(model, dict):
        return Known()
    size = model.get("vision_cfg", {}).get("image_size")
    return Known(model.get("embed_dim"), size if isinstance(size, int) else None, mode and mode == "squash")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_claims(spec: str, *, width: int, image_size: int | None = None, squashes: bool | None = None) -> None:
    """Raise `UserError`, naming both values, if embeddings `width` columns wide cannot be this model's.

    `image_size` and `squashes` are what was said of its preprocessing, None if nothing was.
    """
    known = known_of(spec)
    if known.width not in (None, width):
        raise UserError(
            f"its embeddings have {known.width} columns, those in the files {width}",
            where=spec,
            do="Name the model that made them",
        )
    if image_size is not None and known.image_size not in (None, image_size):
        raise UserError(
            f"it sees images of {known.image_size} pixels, not {image_size}",
            where=spec,
            do=f"Give --image-size {known.image_size}, or name the model that made the embeddings",
        )
    if squashes is not None and known.squashes not in (None, squashes):
        does, option = ("squashes", "Give") if known.squashes else ("crops", "Leave out")
        raise UserError(f"its preprocessing {does} images", where=spec, do=f"{option} --squash")
