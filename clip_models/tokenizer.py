"""Texts → token ids, by the tokenizer that a model's configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
from torch import Tensor

from clip_models.config import ModelConfig, has_no_text
from shards.errors import UserError

Tokenizer = Callable[[list[str]], Tensor]
"""n texts → token ids (n, context_length) int64."""


def tokenizer_for(config: ModelConfig) -> Tokenizer:
    """The tokenizer open_clip would choose for this config: n texts → (n, context_length) int64.

    Without an `hf_tokenizer_name` this is CLIP's own byte-pair encoding, which open_clip bundles: it needs no network.
    Of a model without a text tower it is one that raises a `UserError` when it is called.
    Raises `UserError` if a named tokenizer can neither be found locally nor fetched.
    """
    if has_no_text(config):
        return _no_tokenizer
    text_cfg = config["model_cfg"]["text_cfg"]
    return named_tokenizer(text_cfg, text_cfg.get("hf_tokenizer_name") or "")


def named_tokenizer(text_cfg: dict[str, Any], source: str) -> Tokenizer:
    """`source` is the name or folder of a Hugging Face tokenizer, "" for CLIP's own."""
    length = text_cfg.get("context_length", 77)
    arguments = dict(text_cfg.get("tokenizer_kwargs") or {})
    if not source:
        own: Tokenizer = open_clip.get_tokenizer("", context_length=length, **arguments)
        return own
    mode = text_cfg.get("tokenizer_mode")
    try:
        named: Tokenizer = open_clip.tokenizer.HFTokenizer(
            source, context_length=length, tokenizer_mode=mode, **arguments
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the tokenizer cannot be loaded: {error}",
            where=source,
            do="Check the network, or save the tokenizer's files into the model's folder",
        ) from error
    return named


def _no_tokenizer(_texts: list[str]) -> Tensor:
    raise UserError(
        "this model has no text tower: it was trained to meet text embeddings from elsewhere",
        do="Embed texts with the text teacher that its run had",
    )
