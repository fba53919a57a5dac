"""What pruning left of a model, layer by layer, as a model card shows it; from the configuration alone."""

from __future__ import annotations

from clip_models import LoadedModel
from clip_models.pruned import PRUNED, TowerKind, TowerShape, tower_shape
from distill.export.compare import has_text
from distill.export.markdown import table


def share_left(loaded: LoadedModel) -> float | None:
    """Of the parameters of the pruned towers' attention and MLPs before any pruning, the share that is left.

    None if the model was not pruned.
    """
    shapes = _shapes(loaded).values()
    full = sum(shape.full_prunable for shape in shapes)
    return sum(shape.prunable for shape in shapes) / full if full else None


def layers_left(loaded: LoadedModel) -> list[str]:
    """Markdown: the pruned towers beside the full ones they come from, then their layers; empty if none was pruned."""
    shapes = _shapes(loaded)
    if not shapes:
        return []
    sums = [_sums(shape) for shape in shapes.values()]
    heads = [f"{kind}: {what}" for kind, shape in shapes.items() for what in _columns(shape)]
    depth = max(len(shape.layers) for shape in shapes.values())
    layers = [[at + 1, *(cell for shape in shapes.values() for cell in _cells(shape, at))] for at in range(depth)]
    whole = [kind for kind in _towers(loaded) if kind not in shapes]
    summary = [(name, *(each[name] for each in sums)) for name in sums[0]]
    return [
        "### What pruning left",
        "Heads, MLP units and width were left out of a larger model, of each layer as many as it can spare."
        + "".join(f" The {kind} tower was not pruned." for kind in whole),
        table(("", *(f"{kind} tower" for kind in shapes)), summary),
        table(("layer", *heads), layers, numbers=True),
    ]


def _towers(loaded: LoadedModel) -> dict[str, TowerKind]:
    return {"image": "vision", "text": "text"} if has_text(loaded.model) else {"image": "vision"}


def _shapes(loaded: LoadedModel) -> dict[str, TowerShape]:
    """The towers that were pruned."""
    model_cfg = loaded.config["model_cfg"]
    pruned = model_cfg.get(PRUNED, {})
    shapes = {name: tower_shape(model_cfg, kind) for name, kind in _towers(loaded).items() if kind in pruned}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _sums(shape: TowerShape) -> dict[str, str]:
    full, depth = shape.full, len(shape.layers)
    heads, units = sum(layer.heads for layer in shape.layers), sum(layer.mlp for layer in shape.layers)
    share = shape.prunable / shape.full_prunable
    return {
        "width": f"{shape.width:,} of {full.width:,}",
        "heads, all layers": f"{heads:,} of {depth * full.heads:,}",
        "MLP units, all layers": f"{units:,} of {depth * full.mlp:,}",
        "parameters of attention and MLPs": f"{shape.prunable:,} of {shape.full_prunable:,} ({share:.1%})",
    }


def _columns(shape: TowerShape) -> tuple[str, str]:
    return f"heads of {shape.full.heads:,}", f"MLP units of {shape.full.mlp:,}"


def _cells(shape: TowerShape, at: int) -> tuple[str, str]:
    if at >= len(shape.layers):
        return "", ""
    return f"{shape.layers[at].heads:,}", f"{shape.layers[at].mlp:,}"
