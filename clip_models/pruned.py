"""Transformers whose layers differ: what is left of an open_clip model when heads, MLP units and width were pruned.

Such a model is open_clip's own, as wide as its residual stream, with blocks of ours: tensors have open_clip's names.
Its `model_cfg` says the width where open_clip has it, and, under a key of ours, what each layer has:

    "clipstill_pruned": {"vision": {"full": {"width": 768, "heads": 12, "mlp": 3072},
                                    "layers": [{"heads": 9, "mlp": 2011}, ...]}, "text": {...}}

`full` is the tower that pruning began from: its heads' width stays, and sparsity is relative to its size. No layer has
more than it, and a tower has the width that its own configuration says.
"""

from __future__ import annotations

import json
import textwrap
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from clip_models.shapes import PRUNED, FullShape, LayerShape, TowerKind, TowerShape
from shards.errors import UserError

OutputMap = tuple[Tensor | None, Tensor]
"""Weight (width, in) and bias (width,) of a map into the residual stream; no weight where `in` is 0."""


def tower_shape(model_cfg: dict[str, Any], kind: TowerKind) -> TowerShape | None:
    """The shape of a tower, pruned or not; None if its configuration is no plain transformer of open_clip's.

    Raises `UserError` if what is under our key is not as written above, naming the field.
    """
    pruned = _pruned_towers(model_cfg)
    given = model_cfg[f"{kind}_cfg"]
    foreign = "timm_model_name" in given or "hf_model_name" in given
    cfg: Any = None if foreign else CLIPVisionCfg(**given) if kind == "vision" else CLIPTextCfg(**given)
    plain = not foreign and isinstance(cfg.layers, int)
    if kind in pruned:
        if not plain:
            raise UserError(f"{kind}_cfg is no plain transformer of open_clip's", where=f"{PRUNED}.{kind}")
        return _pruned_shape(pruned[kind], kind, cfg.width)
    if not plain:
        return None
    heads = cfg.width // cfg.head_width if kind == "vision" else cfg.heads
    full = FullShape(width=cfg.width, heads=heads, mlp=int(cfg.width * cfg.mlp_ratio))
    return TowerShape(width=cfg.width, layers=(LayerShape(heads=heads, mlp=full.mlp),) * cfg.layers, full=full)


def _pruned_towers(model_cfg: dict[str, Any]) -> dict[TowerKind, Any]:
    kinds: tuple[TowerKind, ...] = ("vision", "text")
    towers = _object(model_cfg.get(PRUNED, {}), PRUNED, kinds, needed=False)
    return {kind: towers[kind] for kind in kinds if kind in towers}


def _pruned_shape(written: Any, kind: TowerKind, width: Any) -> TowerShape:
    at = f"{PRUNED}.{kind}"
    entry = _object(written, at, ("full", "layers"))
    sizes = _object(entry["full"], f"{at}.full", ("width", "heads", "mlp"))
    full = FullShape(**{name: _count(size, f"{at}.full.{name}", 1) for name, size in sizes.items()})
    if full.width % full.heads:
        raise UserError(f"it is {full.width}, no multiple of its {full.heads} heads", where=f"{at}.full.width")
    if not isinstance(entry["layers"], list) or not entry["layers"]:
        raise _not_that(entry["layers"], f"{at}.layers", "a list of {heads, mlp}, one for each layer")
    layers = []
    for number, given in enumerate(entry["layers"]):
        where = f"{at}.layers[{number}]"
        layer = _object(given, where, ("heads", "mlp"))
        most = {"heads": full.heads, "mlp": full.mlp}
        layers.append(LayerShape(**{name: _count(layer[name], f"{where}.{name}", 0, most[name]) for name in most}))
    return TowerShape(width=_count(width, f"{kind}_cfg.width", 1, full.width), layers=tuple(layers), full=full)


def _object(written: Any, where: str, names: tuple[str, ...], needed: bool = True) -> dict[str, Any]:
    """An object that has nothing but `names`, and all of them if they are `needed`."""
    wanted = f"an object of {' and '.join(names)}"
    if not isinstance(written, dict):
        raise _not_that(written, where, wanted)
    for name in (*names, *written):
        if name not in names or (needed and name not in written):
            fault = f"it lacks {name!r}" if name in names else f"it has {name!r}"
            raise UserError(f"{fault}; it should be {wanted}", where=where)
    return written


def _count(written: Any, where: str, least: int, most: int | None = None) -> int:
    whole = isinstance(written, int) and not isinstance(written, bool)
    if not whole or written < least or (most is not None and written > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to the full tower's {most}"
        raise _not_that(written, where, f"a whole number {bounds}")
    return int(written)


def _not_that(written: Any, where: str, wanted: str) -> UserError:
    return UserError(f"it is {textwrap.shorten(json.dumps(written), 60, placeholder=' …')}, not {wanted}", where=where)


def with_shape(model_cfg: dict[str, Any], kind: TowerKind, shape: TowerShape) -> dict[str, Any]:
    """A copy of `model_cfg` in which the tower has this shape."""
    cfg = deepcopy(model_cfg)
    cfg[f"{kind}_cfg"] |= {"width": shape.width, "layers": len(shape.layers)}
    entry = {"full": asdict(shape.full), "layers": [asdict(layer) for layer in shape.layers]}
    cfg[PRUNED] = {**cfg.get(PRUNED, {}), kind: entry}
    return cfg


def take_shapes(arguments: dict[str, Any]) -> dict[TowerKind, TowerShape]:
    """Take our key out of a model's constructor arguments: the shapes of its pruned towers.

    In `arguments` each of these is left with one ordinary layer of one head, for `put_blocks` to replace.
    """
    shapes: dict[TowerKind, TowerShape] = {}
    for kind in _pruned_towers(arguments):
        shape = tower_shape(arguments, kind)
        if shape is not None:
            shapes[kind] = shape
            one_head = {"head_width": shape.width} if kind == "vision" else {"heads": 1}
            arguments[f"{kind}_cfg"] |= {"layers": 1, **one_head}
    arguments.pop(PRUNED, None)
    return shapes


def transformer_of(model: Any, kind: TowerKind) -> Any:
    """open_clip's `Transformer` of a tower."""
    if kind == "vision":
        return model.visual.transformer
    return model.text.transformer if hasattr(model, "text") else model.transformer


def put_blocks(model: Any, shapes: dict[TowerKind, TowerShape]) -> None:
    """Give the towers of a model that was built from `take_shapes`' arguments their layers, randomly initialised."""
    for kind, shape in shapes.items():
        home = model.visual if kind == "vision" else getattr(model, "text", model)
        if hasattr(home, "transformer"):
            transformer = transformer_of(model, kind)
            template = transformer.resblocks[0]
            blocks = [Block(shape.width, shape.head_width, layer, template) for layer in shape.layers]
            transformer.resblocks, transformer.layers = nn.ModuleList(blocks), len(blocks)


class Block(nn.Module):
    """open_clip's `ResidualAttentionBlock` with `shape.heads` heads of `head_width` and `shape.mlp` MLP units.

    A part that has none of these still adds its output bias; its norm is gone. `like` is a block of open_clip's, or one
    of these, of the same width: norms and activation are copies of its own.
    """

    def __init__(self, width: int, head_width: int, shape: LayerShape, like: Any) -> None:
        super().__init__()
        norm = like.ln_1 or like.ln_2
        self.ln_1 = deepcopy(norm) if shape.heads else None
        self.attn = Attention(width, head_width, shape.heads)
        self.ln_2 = deepcopy(norm) if shape.mlp else None
        self.mlp = Mlp(width, shape.mlp, like.mlp.gelu)

    def outputs(self) -> tuple[OutputMap, OutputMap]:
        """The maps that end attention and MLP."""
        return _map(self.attn.out_proj), _map(self.mlp.c_proj)

    def forward(self, x: Tensor, _k: None = None, _v: None = None, attn_mask: Tensor | None = None) -> Tensor:
        """(n, length, width) → the same; `attn_mask` (length, length) is added to the logits.

        open_clip's blocks take keys and values too, and its checkpointing gives None for them.
        """
        of_attention, of_mlp = self.outputs()
        x = x + (of_attention[1] if self.ln_1 is None else self.attn(self.ln_1(x), of_attention, attn_mask))
        return x + (of_mlp[1] if self.ln_2 is None else self.mlp(self.ln_2(x), of_mlp))

    def get_weight_dtype(self) -> torch.dtype:
        """open_clip asks this of its blocks."""
        _, bias = _map(self.mlp.c_proj)
        return bias.dtype


class Attention(nn.Module):
    """Self-attention of any number of heads, whatever the width; without heads it has an output bias alone."""

    def __init__(self, width: int, head_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        if heads:
            self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, width).normal_(std=width**-0.5))
            self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        self.out_proj = _output(inner, width)

    def forward(self, x: Tensor, output: OutputMap, attn_mask: Tensor | None = None) -> Tensor:
        """(n, length, width) → the same, through the output map that is given."""
        n, length, _ = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return _linear(mixed.transpose(1, 2).reshape(n, length, -1), output)


class Mlp(nn.Module):
    """An MLP of any number of units; without units it has an output bias alone."""

    def __init__(self, width: int, units: int, activation: nn.Module) -> None:
        super().__init__()
        if units:
            self.c_fc = nn.Linear(width, units)
        self.gelu = activation
        self.c_proj = _output(units, width)

    def forward(self, x: Tensor, output: OutputMap) -> Tensor:
        """(..., width) → the same, through the output map that is given."""
        return _linear(self.gelu(self.c_fc(x)), output)


class BiasOnly(nn.Module):
    """What is left of a linear map from nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))


def _output(inputs: int, width: int) -> nn.Module:
    if not inputs:
        return BiasOnly(width)
    made = nn.Linear(inputs, width)
    nn.init.zeros_(made.bias)
    return made


def _map(module: Any) -> OutputMap:
    return getattr(module, "weight", None), module.bias


def _linear(x: Tensor, output: OutputMap) -> Tensor:
    weight, bias = output
    assert weight is not None
    return F.linear(x, weight, bias)
