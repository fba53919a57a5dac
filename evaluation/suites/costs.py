"""What a model costs: parameters, multiply-accumulates, pairs a second and latency, by `clip_models`."""

from __future__ import annotations

from typing import Any

from clip_models import LoadedModel
from clip_models.measure import latency, size_of, throughput
from shards.errors import UserError

_ON_CPU = {"warm_up": 1, "timed": 4}
"""Batches: there the published protocol's 60 take minutes."""


def costs(loaded: LoadedModel) -> dict[str, Any]:
    """Fields of `Row`. Speeds are this machine's, by TinyCLIP's protocol, of fewer batches without a GPU."""
    model = loaded.model
    try:
        size = size_of(model)
    except Exception as error:  # whatever the modules of open_clip, timm and transformers object to
        raise UserError(f"it cannot be counted ({error})", where=loaded.name, do="Check its configuration") from error
    counted = size.image + (size.text or 0)
    few = {} if model.logit_scale.device.type == "cuda" else _ON_CPU
    return {
        "image": size.image / 1e6,
        "text": None if size.text is None else size.text / 1e6,
        "embedding": max(0, size.total - counted) / 1e6,
        "macs": size.macs / 1e9,
        "pairs": throughput(model, **few).pairs,
        "latency": latency(model),
    }
