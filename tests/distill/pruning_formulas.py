"""Automatic inheritance in numpy, from TinyCLIP's formulas: gates on activations, norms of the open dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Open:
    """The gates of a tower: (d,), and by layer (heads,) and (units,)."""

    hidden: Array
    heads: list[Array]
    mlp: list[Array]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def training_gate(log_alpha: Array, u: Array) -> Array:
    return np.clip(sigmoid((np.log(u) - np.log(1 - u) + log_alpha) / (2 / 3)) * 1.2 - 0.1, 0, 1)


def probability(log_alpha: Array) -> Array:
    return 1 - np.clip(sigmoid((2 / 3) * math.log((1 / 12) / (11 / 12)) - log_alpha), 1e-6, 1 - 1e-6)


def evaluation_gate(log_alpha: Array) -> Array:
    gate = sigmoid(0.8 * log_alpha / (2 / 3))
    for _ in range(round(len(gate) - probability(log_alpha).sum())):
        gate[np.argmin(np.where(gate > 0, gate, np.inf))] = 0
    return gate


def expected_parameters(hidden: Array, heads: Array, mlp: Array, d: int, full_heads: int) -> float:
    per_head = (4 * d * d + 4 * d) // full_heads
    together = probability(heads).sum() * per_head / d + 2 * probability(mlp).sum()
    return float(probability(hidden).sum() * together)


def prunable(d: int, layers: int) -> int:
    return layers * (4 * d * d + 4 * d + 2 * d * 4 * d + d + 4 * d)


def penalty(expected: float, target: float, lambda1: float, lambda2: float) -> float:
    gap = max(target - expected, 0)
    return lambda1 * gap + lambda2 * gap**2


def norm(x: Array, weight: Array, bias: Array, hidden: Array) -> Array:
    kept = np.flatnonzero(hidden)
    inner = x[..., kept]
    inner = (inner - inner.mean(-1, keepdims=True)) / np.sqrt(inner.var(-1, keepdims=True) + 1e-5)
    out = np.zeros_like(x)
    out[..., kept] = inner * weight[kept] + bias[kept]
    return out


def image_tower(tensors: Mapping[str, Array], pixels: Array, opened: Open, head_width: int) -> Array:
    """(n, 3, s, s) → (n, embed_dim) of a ViT with a class token and QuickGELU."""
    t = {name.removeprefix("visual."): value for name, value in tensors.items() if name.startswith("visual.")}
    patch = t["conv1.weight"].shape[-1]
    n, side = len(pixels), pixels.shape[-1] // patch
    pieces = pixels.reshape(n, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5).reshape(n, side * side, -1)
    patches = pieces @ t["conv1.weight"].reshape(len(t["conv1.weight"]), -1).T
    x = np.concatenate([np.broadcast_to(t["class_embedding"], (n, 1, patches.shape[-1])), patches], axis=1)
    x = (x + t["positional_embedding"]) * opened.hidden
    x = norm(x, t["ln_pre.weight"], t["ln_pre.bias"], opened.hidden)
    x = _blocks(t, x, opened, head_width, causal=False)
    return norm(x[:, 0], t["ln_post.weight"], t["ln_post.bias"], opened.hidden) @ t["proj"]


def text_tower(tensors: Mapping[str, Array], ids: npt.NDArray[np.int64], opened: Open, head_width: int) -> Array:
    """(n, length) → (n, embed_dim) of CLIP's text transformer with QuickGELU."""
    x = (tensors["token_embedding.weight"][ids] + tensors["positional_embedding"]) * opened.hidden
    x = _blocks(tensors, x, opened, head_width, causal=True)
    x = norm(x, tensors["ln_final.weight"], tensors["ln_final.bias"], opened.hidden)
    return x[np.arange(len(ids)), ids.argmax(1)] @ tensors["text_projection"]


def _blocks(t: Mapping[str, Array], x: Array, opened: Open, head_width: int, causal: bool) -> Array:
    length = x.shape[1]
    future = np.triu(np.full((length, length), -np.inf), 1) if causal else np.zeros((length, length))
    for at, (head_gates, mlp_gates) in enumerate(zip(opened.heads, opened.mlp, strict=True)):
        b = {k.removeprefix(f"transformer.resblocks.{at}."): v for k, v in t.items()}
        inner = norm(x, b["ln_1.weight"], b["ln_1.bias"], opened.hidden)
        qkv = inner @ b["attn.in_proj_weight"].T + b["attn.in_proj_bias"]
        q, k, v = np.split(qkv, 3, axis=-1)
        mixed = []
        for head, gate in enumerate(head_gates):
            own = slice(head * head_width, (head + 1) * head_width)
            logits = q[..., own] @ k[..., own].transpose(0, 2, 1) / math.sqrt(head_width) + future
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            mixed.append(gate * (weights / weights.sum(-1, keepdims=True)) @ v[..., own])
        out = np.concatenate(mixed, axis=-1) @ b["attn.out_proj.weight"].T + b["attn.out_proj.bias"]
        x = x + out * opened.hidden
        inner = norm(x, b["ln_2.weight"], b["ln_2.bias"], opened.hidden)
        hidden = inner @ b["mlp.c_fc.weight"].T + b["mlp.c_fc.bias"]
        active = hidden * sigmoid(1.702 * hidden) * mlp_gates
        x = x + (active @ b["mlp.c_proj.weight"].T + b["mlp.c_proj.bias"]) * opened.hidden
    return x
