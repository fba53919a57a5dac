"""A student under masks: open_clip's module whose blocks and norms obey the gates of their tower.

Hidden gates multiply whatever writes into the residual stream (embeddings, the output maps of attention and MLP with
their biases), head gates the heads' outputs, MLP gates the activations. All of these are linear, so a gate multiplies
the weights that follow; `materialise.py` folds the same products in for good. Norms see the open dimensions alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from clip_models import ModelConfig
from clip_models.pruned import Block, OutputMap, tower_shape, transformer_of
from clip_models.shapes import LayerShape, TowerKind, TowerShape
from distill.pruning.gates import Gates, Opened
from shards import UserError


class MaskedNorm(nn.Module):
    """Layer norm over the open dimensions (those whose gate is not 0); the others come out 0.

    `weight`, `bias` (d,) and `eps` are those of the norm it stands for. Computed in float32 at least.
    """

    def __init__(self, norm: nn.LayerNorm, gates: Gates) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        # In a tuple it is no child: the gates' parameters belong to the tower.
        self._gates = (gates,)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) → the same, in the same dtype."""
        kept = self._gates[0].opened.kept
        count = kept.sum().clamp(min=1)
        # Closed dimensions of the stream are 0: they add nothing to the sum.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.sum(-1, keepdim=True) / count
        variance = (centred.square() * kept).sum(-1, keepdim=True) / count
        normed = centred * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias * kept, normed, self.weight * kept).to(x.dtype)


class MaskedBlock(Block):
    """A block of a masked tower, the `at`-th."""

    def __init__(self, shape: TowerShape, layer: LayerShape, like: Any, gates: Gates, at: int) -> None:
        super().__init__(shape.width, shape.head_width, layer, like)
        self.head_width, self.at = shape.head_width, at
        self._gates = (gates,)
        self.ln_1 = None if self.ln_1 is None else MaskedNorm(self.ln_1, gates)
        self.ln_2 = None if self.ln_2 is None else MaskedNorm(self.ln_2, gates)

    def outputs(self) -> tuple[OutputMap, OutputMap]:
        """The output maps under the gates of this forward."""
        return self.folded(self._gates[0].opened)

    def folded(self, opened: Opened) -> tuple[OutputMap, OutputMap]:
        """The output maps with gates folded in: rows by hidden, columns by head or MLP unit, biases by hidden."""
        (attention, attention_bias), (mlp, mlp_bias) = super().outputs()
        rows = opened.hidden[:, None]
        if attention is not None:
            attention = attention * rows * opened.heads[self.at].repeat_interleave(self.head_width)
        if mlp is not None:
            mlp = mlp * rows * opened.mlp[self.at]
        return (attention, attention_bias * opened.hidden), (mlp, mlp_bias * opened.hidden)


@dataclass(frozen=True)
class MaskedTower:
    """A tower of a masked model: `kind` as in its config, and the gates that its parts share."""

    kind: TowerKind
    gates: Gates


def masked_towers(model: Any) -> list[MaskedTower]:
    """The masked towers of a model, the image's first."""
    return [MaskedTower(kind, transformer_of(model, kind).gates) for kind in _kinds(model, masked=True)]


def mask(model: Any, config: ModelConfig) -> None:
    """Put every tower of `model` that is trained under masks, all open; `config` is the model's.

    Parameters keep their names and values; `transformer.gates` joins them. Raises `UserError` if a tower cannot be
    masked: it has to be open_clip's plain ViT or text transformer, or what pruning left of one.
    """
    kinds = [kind for kind in _kinds(model) if any(p.requires_grad for p in _parameters(model, kind))]
    if not kinds:
        raise UserError("no tower is trained, so none can be pruned", where="--prune", do="Leave out --lock")
    for kind in kinds:
        shape = tower_shape(config["model_cfg"], kind)
        problem = _problem(model, kind)
        if shape is None or problem:
            raise UserError(
                f"the {kind} tower cannot be pruned automatically: {problem or 'it is not a plain transformer'}",
                where="--prune",
                do="Use a student whose towers are open_clip's ViT and text transformer, or --lock the tower",
            )
        _mask_tower(model, kind, shape)


def _mask_tower(model: Any, kind: TowerKind, shape: TowerShape) -> None:
    transformer, home = transformer_of(model, kind), _home(model, kind)
    like = home.positional_embedding
    # What is new follows what it stands in: a model in evaluation stays in evaluation.
    gates = Gates(shape).to(like).train(transformer.training)
    blocks = []
    for at, (layer, old) in enumerate(zip(shape.layers, transformer.resblocks, strict=True)):
        block = MaskedBlock(shape, layer, old, gates, at).to(like)
        block.load_state_dict(old.state_dict())
        trained = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(trained[name])
        blocks.append(block.train(old.training))
    transformer.resblocks, transformer.gates = nn.ModuleList(blocks), gates
    transformer.resblocks.training = transformer.training
    for name in ("ln_pre", "ln_post") if kind == "vision" else ("ln_final",):
        if isinstance(getattr(home, name), nn.LayerNorm):
            norm = getattr(home, name)
            setattr(home, name, MaskedNorm(norm, gates).train(norm.training))
    first = home.ln_pre if kind == "vision" else transformer
    first.register_forward_pre_hook(gates.begin)


def _home(model: Any, kind: TowerKind) -> Any:
    """The module that holds a tower's embeddings and last norm."""
    return model.visual if kind == "vision" else getattr(model, "text", model)


def _kinds(model: Any, *, masked: bool = False) -> Iterator[TowerKind]:
    kinds: tuple[TowerKind, ...] = ("vision", "text")
    for kind in kinds:
        there = kind == "vision" or hasattr(model, "text") or hasattr(model, "transformer")
        if there and (not masked or hasattr(getattr(_home(model, kind), "transformer", None), "gates")):
            yield kind


def _parameters(model: Any, kind: TowerKind) -> list[nn.Parameter]:
    if kind == "vision" or hasattr(model, "text"):
        return list(_home(model, kind).parameters())
    return [*model.transformer.parameters(), *model.token_embedding.parameters()]


def _problem(model: Any, kind: TowerKind) -> str | None:
    """What about a tower masks do not know."""
    home = _home(model, kind)
    if kind == "vision" and not isinstance(home, VisionTransformer):
        return f"it is a {type(getattr(home, 'trunk', home)).__name__}"
    if hasattr(model, "text") and kind == "text" and not isinstance(home, TextTransformer):
        return f"it is a {type(home).__name__}"
    for name, fault in (("attn_pool", "it pools by attention"), ("cls_emb", "it has a class token")):
        if getattr(home, name, None) is not None:
            return fault
    if not home.positional_embedding.requires_grad:
        return "its positions are fixed"
    plain = (Block, ResidualAttentionBlock)
    for block in transformer_of(model, kind).resblocks:
        scales = [getattr(block, name, None) for name in ("ls_1", "ls_2")]
        if not isinstance(block, plain) or any(not isinstance(scale, nn.Identity | None) for scale in scales):
            return "its blocks have parts beyond attention and MLP"
    return None
