"""Captions without their padding: a text tower whose tokens see no later ones need not compute what follows the end.

What comes out is the same but for rounding, at the price of the tokens that there are: captions of a dozen tokens cost
a sixth of a context of 77.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

_MULTIPLE = 8
"""Lengths are rounded up to it: few shapes, and those that GPUs like."""
_APART = 4
"""On a CPU, captions whose lengths are alike to this multiple are computed together."""


def has_short_form(model: Any) -> bool:
    """Whether what a text's end marker says is all that counts, and it sees only what stands before it.

    So of open_clip's text transformers with a causal mask that take the largest token for the end, in a CLIP or beside
    any image tower.
    """
    if type(model) is open_clip.CLIP:
        return model.attn_mask is not None and model.text_pool_type == "argmax"
    text = getattr(model, "text", None)
    if not isinstance(text, TextTransformer) or text.cls_emb is not None or text.output_tokens:
        return False
    return text.attn_mask is not None and text.pool_type == "argmax"


def shortened(tokens: Tensor) -> Tensor:
    """(b, context) of CLIP's ids, 0 after the end → the first columns, in which all of them end."""
    # Not where they are not 0: an id of 0 is a word too.
    ends = int(tokens.argmax(dim=1).max()) + 1
    return tokens[:, : -(-ends // _MULTIPLE) * _MULTIPLE]


class _Text(nn.Module):
    """Has a text tower's forward where `functional_call` looks for one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.model.encode_text(tokens)
        return features


def encode_by_length(model: Any, tokens: Tensor) -> Tensor:
    """As `encode_text`, by a model that `has_short_form`, captions of like lengths together and no longer than these.

    For a CPU: to a GPU the lengths would be news that the host has to wait for.
    """
    groups: dict[int, list[int]] = {}
    for row, end in enumerate(tokens.argmax(dim=1).tolist()):
        groups.setdefault(-(-(end + 1) // _APART) * _APART, []).append(row)
    parts = [encode_text(model, tokens[rows, :length]) for length, rows in groups.items()]
    order = torch.tensor([row for rows in groups.values() for row in rows])
    return torch.cat(parts)[order.argsort()]


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """(b, n) of the first n columns → (b, D), by a model that `has_short_form` or of its whole context."""
    tower, prefix = (model, "model") if not hasattr(model, "text") else (model.text, "model.text")
    length = tokens.shape[1]
    if length >= getattr(tower, "context_length", length):
        features: Tensor = model.encode_text(tokens)
        return features
    # open_clip's CLIP adds all of its positions: for this forward it has as many as there are tokens.
    leading = {
        "positional_embedding": tower.positional_embedding[:length],
        "attn_mask": tower.attn_mask[:length, :length],
    }
    found: Tensor = torch.func.functional_call(
        _Text(model), {f"{prefix}.{name}": value for name, value in leading.items()}, (tokens,)
    )
    return found
