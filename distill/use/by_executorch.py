"""Students that ExecuTorch computes, one picture or text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from distill.use.encoders import Encoders, Rows
from distill.use.text import TextTokens, read_settings
from shards.errors import UserError


def open_executorch(folder: Path, _device: str | None = None) -> Encoders:
    """What `distill.export.to_executorch` writes."""
    config, texts = read_settings(folder / "config.json"), None
    if (folder / "text_encoder.pte").is_file():
        tokens = TextTokens(folder, config["model_cfg"]["text_cfg"])
        encode = _tower(folder / "text_encoder.pte")
        texts = lambda batch: encode(tokens(batch))  # noqa: E731
    return Encoders(
        images=_tower(folder / "image_encoder.pte"),
        texts=texts,
        scale=config["logit_scale"],
        bias=config["logit_bias"],
        preprocess_cfg=config["preprocess_cfg"],
    )


def _tower(path: Path) -> Any:
    try:
        from executorch.runtime import Runtime  # noqa: PLC0415 - optional
    except ImportError:
        do = "Run `pip install 'clipstill[executorch]'`"
        raise UserError("executorch is not installed", where=str(path), do=do) from None
    import torch  # noqa: PLC0415

    method = Runtime.get().load_program(path).load_method("forward")

    def rows(batch: Any) -> Rows:
        found = [method.execute([torch.from_numpy(row[None])])[0].numpy().copy() for row in batch]
        return np.concatenate(found)

    return rows
