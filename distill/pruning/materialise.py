"""A masked student → the dense model that it is in evaluation, with what was pruned gone.

Gates are folded into the weights as `masks.py` multiplies them, then closed rows and columns are left out, so the dense
model computes what the masked one does. TinyCLIP's own code differs in three places: it multiplies the projection's
rows by the hidden gates too, drops the output bias of an attention without heads, and reports other sizes than it has.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from clip_models import ModelConfig, build_model
from clip_models.pruned import transformer_of, with_shape
from clip_models.shapes import TowerKind
from distill.pruning.gates import Gates, Opened
from distill.pruning.masks import masked_towers

# Of the tensors outside blocks: which axis is the residual stream's, and whether they write into it (then they are
# multiplied by its gates).
_OUTSIDE: dict[TowerKind, dict[str, tuple[int, bool]]] = {
    "vision": {
        "conv1.weight": (0, True),
        "class_embedding": (0, True),
        "positional_embedding": (1, True),
        "ln_pre.weight": (0, False),
        "ln_pre.bias": (0, False),
        "ln_post.weight": (0, False),
        "ln_post.bias": (0, False),
        "proj": (0, False),
    },
    "text": {
        "token_embedding.weight": (1, True),
        "positional_embedding": (1, True),
        "ln_final.weight": (0, False),
        "ln_final.bias": (0, False),
        "text_projection": (0, False),
        "text_projection.weight": (1, False),
    },
}


@torch.no_grad()
def materialise(model: Any, config: ModelConfig) -> tuple[Any, ModelConfig]:
    """The dense model and its config, in evaluation mode, in the dtype and on the device of `model`.

    `config` is the one that `model` was made from; both stay as they are.
    """
    tensors = dict(model.state_dict())
    config = deepcopy(config)
    for tower in masked_towers(model):
        opened = tower.gates.chosen()
        config["model_cfg"] = with_shape(config["model_cfg"], tower.kind, opened.shape(tower.gates.shape))
        home = "visual." if tower.kind == "vision" else "text." if hasattr(model, "text") else ""
        _fold_outside(tensors, home, tower.kind, opened)
        _fold_blocks(tensors, f"{home}transformer.", transformer_of(model, tower.kind), tower.gates, opened)
    dense = build_model(config)
    dense.to(device=model.logit_scale.device, dtype=model.logit_scale.dtype)
    dense.load_state_dict(tensors)
    return dense.eval(), config


def _fold_outside(tensors: dict[str, Tensor], home: str, kind: TowerKind, opened: Opened) -> None:
    stream = opened.kept.nonzero()[:, 0]
    for name, (axis, writes) in _OUTSIDE[kind].items():
        if home + name in tensors:
            value = tensors[home + name].index_select(axis, stream)
            factors = [-1 if at == axis else 1 for at in range(value.ndim)]
            tensors[home + name] = value * opened.hidden[stream].reshape(factors) if writes else value


def _fold_blocks(tensors: dict[str, Tensor], home: str, transformer: Any, gates: Gates, opened: Opened) -> None:
    for name in [name for name in tensors if name.startswith(f"{home}gates.")]:
        del tensors[name]
    for at, block in enumerate(transformer.resblocks):
        prefix = f"{home}resblocks.{at}."
        (attention, attention_bias), (mlp, mlp_bias) = block.folded(opened)
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]
        stream = opened.kept.nonzero()[:, 0]
        heads = (opened.heads[at] > 0).nonzero()[:, 0]
        units = (opened.mlp[at] > 0).nonzero()[:, 0]
        kept = {"attn.out_proj.bias": attention_bias[stream], "mlp.c_proj.bias": mlp_bias[stream]}
        if len(heads):
            width = gates.shape.head_width
            # Rows of query, key and value lie (3, heads, head width).
            columns = (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()
            inner = block.attn.heads * width
            rows = torch.cat([columns, columns + inner, columns + 2 * inner])
            kept |= {
                "ln_1.weight": block.ln_1.weight[stream],
                "ln_1.bias": block.ln_1.bias[stream],
                "attn.in_proj_weight": block.attn.in_proj_weight[rows][:, stream],
                "attn.in_proj_bias": block.attn.in_proj_bias[rows],
                "attn.out_proj.weight": attention[stream][:, columns],
            }
        if len(units):
            kept |= {
                "ln_2.weight": block.ln_2.weight[stream],
                "ln_2.bias": block.ln_2.bias[stream],
                "mlp.c_fc.weight": block.mlp.c_fc.weight[units][:, stream],
                "mlp.c_fc.bias": block.mlp.c_fc.bias[units],
                "mlp.c_proj.weight": mlp[stream][:, units],
            }
        tensors |= {prefix + name: value for name, value in kept.items()}
