"""Zero-shot classification as in CLIP (Radford et al., ICML 2021, section 3.1): class names in prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_models import Tokenizer
from shards.errors import UserError

Template = str | Callable[[str], str]
"""A prompt with `{}` for the class name, or a function from the name to the prompt (open_clip's form)."""

_PROMPTS_A_FORWARD = 256
_LOGITS_A_BLOCK = 1 << 24


@torch.no_grad()
def class_weights(model: Any, tokenizer: Tokenizer, classes: Sequence[str], templates: Sequence[Template]) -> Tensor:
    """The zero-shot classifier: (C, D) float32, or float64 of a model in float64, on the CPU, rows of unit length.

    Each class's prompt embeddings are normalised, averaged over the templates and normalised again. The model is
    run on its own device, in the mode it is in.
    Raises `UserError` if there are no classes or no templates, or if a template has no place for the class name.
    """
    if not classes or not templates:
        raise UserError(
            f"{len(classes)} classes and {len(templates)} templates were given",
            where="zero-shot",
            do="Give at least one of each",
        )
    device = next(model.parameters()).device
    prompts = [_prompt(template, name) for name in classes for template in templates]
    parts = []
    for start in range(0, len(prompts), _PROMPTS_A_FORWARD):
        tokens = tokenizer(prompts[start : start + _PROMPTS_A_FORWARD]).to(device)
        parts.append(normalize(at_least_single(model.encode_text(tokens)), dim=-1).cpu())
    embeddings = torch.cat(parts).view(len(classes), len(templates), -1)
    return normalize(embeddings.mean(dim=1), dim=-1)


def top_k(image_embeddings: Tensor, weights: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Top-k accuracy in percent, as `{"top1": ..., "top5": ...}`.

    `image_embeddings` (n, D) and `weights` (C, D) float32, rows of unit length; `labels` (n,) int64 in [0, C). Logits
    are 100·image·classᵀ. Of equal logits the lower class comes first, as with argmax, so embeddings that are all the
    same score what always answering class 0 scores. A NaN logit is a miss.
    """
    if len(image_embeddings) == 0:
        raise ValueError("top_k of no images")
    ranks = []
    columns = torch.arange(len(weights), device=weights.device)
    rows = max(1, _LOGITS_A_BLOCK // len(weights))
    for start in range(0, len(image_embeddings), rows):
        wanted = labels[start : start + rows, None]
        logits = 100.0 * image_embeddings[start : start + rows] @ weights.T
        own = logits.gather(1, wanted)
        # Negated so that a NaN on either side counts as ahead.
        ahead = ~(logits <= own) | ((logits == own) & (columns < wanted))
        ranks.append(ahead.sum(dim=1))
    rank = torch.cat(ranks)
    return {f"top{k}": 100.0 * (rank < k).double().mean().item() for k in ks}


def at_least_single(rows: Tensor) -> Tensor:
    """`rows` as float32, or as they are if they are finer."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _prompt(template: Template, name: str) -> str:
    if callable(template):
        return template(name)
    if "{}" not in template:
        raise UserError(
            f"the template {template!r} has no {{}}", where="zero-shot", do="Write {} where the class name goes"
        )
    return template.replace("{}", name)
