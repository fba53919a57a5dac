"""What pruning left of a student: as JSON and in words, drawn layer by layer for pages, and in rows for model cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from markupsafe import Markup

from clip_models import ModelConfig
from clip_models.pruned import tower_shape
from clip_models.shapes import PRUNED, TowerKind, TowerShape
from distill.pruning.gates import Gates
from distill.pruning.masks import masked_towers
from distill.pruning.settings import PruneSettings
from distill.pruning.sparsity import expected_sparsity

_NAMES = {"vision": "Image tower", "text": "Text tower"}
_ROW, _CELL, _LEFT, _RIGHT, _WIDTH = 20, 13, 58, 700, 780


@torch.no_grad()
def pruning_report(model: Any, settings: PruneSettings) -> dict[str, Any]:
    """What `materialise` makes of the masked `model`, for `pruning.json`.

    `parameters` are those of attention and MLPs, counted, of the full tower, before this run, and kept; `sparsity` is
    the share of the full ones that is gone, `expected` what the masks expected. `layers[i].kept_heads` numbers the
    heads that stay among those before this run.
    """
    towers = {tower.kind: tower.gates for tower in masked_towers(model)}
    parts = {kind: _tower(gates) for kind, gates in towers.items()}
    parameters = {name: sum(part["parameters"][name] for part in parts.values()) for name in ("full", "before", "kept")}
    return {
        "target": settings.target,
        "expected": float(expected_sparsity(list(towers.values()))),
        "sparsity": 1 - parameters["kept"] / parameters["full"],
        "parameters": parameters,
        "towers": parts,
    }


def _tower(gates: Gates) -> dict[str, Any]:
    opened, before = gates.chosen(), gates.shape
    after = opened.shape(before)
    layers = [
        {"heads": layer.heads, "mlp": layer.mlp, "kept_heads": (heads > 0).nonzero()[:, 0].tolist()}
        for layer, heads in zip(after.layers, opened.heads, strict=True)
    ]
    full = before.full
    return {
        "full": {"width": full.width, "heads": full.heads, "mlp": full.mlp},
        "before": {"width": before.width, "heads": [layer.heads for layer in before.layers]},
        "width": after.width,
        "layers": layers,
        "parameters": {"full": before.full_prunable, "before": before.prunable, "kept": after.prunable},
    }


def missed(report: Mapping[str, Any]) -> str | None:
    """Where a finished run is not as sparse as it was asked to be: that, and what to do."""
    target, found = report["target"], report["sparsity"]
    said = f"asked to leave out {100 * target:.1f} %, {100 * found:.1f} % are: "
    if found < target - 0.02:
        return said + "run longer, or with a larger --prune-lr"
    return said + "give a longer ramp, or a smaller --prune-lr" if found > target + 0.05 else None


def in_words(report: Mapping[str, Any]) -> str:
    """A report as `pruning.json` has it, with the `step` it is of and, at the end, the sizes that were `delivered`.

    Raises what a damaged one raises: `KeyError`, `TypeError` and the like.
    """
    parameters = report["parameters"]
    of = f"{report['sparsity']:.1%} of {parameters['full']:,} parameters of attention and MLPs"
    shares = f"{of}, {report['target']:.1%} asked for"
    if "delivered" in report:
        sizes = " + ".join(f"{count / 1e6:.3g} M ({tower})" for tower, count in report["delivered"].items())
        said = (
            f"The run leaves out {shares}, and keeps {parameters['kept']:,}. The model that it delivers has {sizes} "
            "parameters in all, the text tower's without its token embedding."
        )
    else:
        said = f"If it ended after step {report['step']:,}, the run would leave out {shares}."
    towers = report["towers"].values()
    fewer = any(heads < tower["full"]["heads"] for tower in towers for heads in tower["before"]["heads"])
    earlier = "; heads that earlier runs left out are not drawn" if fewer else ""
    return f"{said} Heads: full where kept, hollow where this run left them out{earlier}."


class Pruned(NamedTuple):
    """What is left of a pruned model: the `share` of its pruned towers' attention and MLPs, and two tables.

    `towers` beside the full ones that they come from, and their `layers`: each a head, of which the first cell is the
    rows', and rows. `whole` names the towers that were not pruned.
    """

    share: float
    whole: list[str]
    towers: tuple[list[str], list[tuple[str, ...]]]
    layers: tuple[list[str], list[tuple[str, ...]]]


def pruned(config: ModelConfig, towers: Mapping[str, TowerKind]) -> Pruned | None:
    """What a model's config says of these of its towers; None if none was pruned."""
    model_cfg = config["model_cfg"]
    found = {name: tower_shape(model_cfg, kind) for name, kind in towers.items() if kind in model_cfg.get(PRUNED, {})}
    shapes = {name: shape for name, shape in found.items() if shape is not None}
    if not shapes:
        return None
    sums = [_sums(shape) for shape in shapes.values()]
    columns = [
        f"{name}: {what}"
        for name, shape in shapes.items()
        for what in (f"heads of {shape.full.heads:,}", f"MLP units of {shape.full.mlp:,}")
    ]
    depth = max(len(shape.layers) for shape in shapes.values())
    layers = [(str(at + 1), *(cell for shape in shapes.values() for cell in _cells(shape, at))) for at in range(depth)]
    full = sum(shape.full_prunable for shape in shapes.values())
    return Pruned(
        share=sum(shape.prunable for shape in shapes.values()) / full,
        whole=[name for name in towers if name not in shapes],
        towers=(["", *(f"{name} tower" for name in shapes)], [(n, *(each[n] for each in sums)) for n in sums[0]]),
        layers=(["layer", *columns], layers),
    )


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


def _cells(shape: TowerShape, at: int) -> tuple[str, str]:
    if at >= len(shape.layers):
        return "", ""
    return f"{shape.layers[at].heads:,}", f"{shape.layers[at].mlp:,}"


def draw_architecture(report: Mapping[str, Any]) -> Markup:
    """The architecture in a report of `pruning_report`, a figure with an inline SVG for each tower.

    A row is a layer: its heads (full where kept, hollow where this run removed them; those of earlier runs are not
    there), then how many of the full model's MLP units it has. Colours are those of the run's page.
    """
    return Markup("").join(_figure(kind, tower) for kind, tower in report["towers"].items())


def _figure(kind: str, tower: dict[str, Any]) -> Markup:
    full, parameters = tower["full"], tower["parameters"]
    bars = _LEFT + full["heads"] * _CELL + 52
    rows = [
        _text(0, 0, "width"),
        _bar(0, _LEFT, _RIGHT - _LEFT, tower["width"] / full["width"], "--c4"),
        _text(_RIGHT + 8, 0, f"{tower['width']} of {full['width']}"),
        _text(_LEFT, 1, f"heads, of {full['heads']}"),
        _text(bars, 1, f"MLP units, of {full['mlp']:,}"),
    ]
    for at, layer in enumerate(tower["layers"]):
        row = at + 2
        rows += [
            _text(0, row, f"layer {at + 1}"),
            _heads(row, tower["before"]["heads"][at], layer["kept_heads"]),
            _text(bars - 22, row, layer["heads"], "end"),
            _bar(row, bars, _RIGHT - bars, layer["mlp"] / full["mlp"], "--c2"),
            _text(_RIGHT + 8, row, f"{layer['mlp']:,}"),
        ]
    share = parameters["kept"] / parameters["full"]
    caption = f"{share:.1%} of {parameters['full']:,} parameters of attention and MLPs"
    return Markup(
        '<figure class="loss"><figcaption>{} <small>{}</small></figcaption><svg viewBox="0 0 {} {}" role="img">{}</svg>'
        "</figure>"
    ).format(_NAMES[kind], caption, _WIDTH, (len(tower["layers"]) + 2) * _ROW, Markup("").join(rows))


def _text(x: int, row: int, text: object, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, row * _ROW + 11, anchor, text)


def _heads(row: int, before: int, kept: list[int]) -> Markup:
    cell = Markup('<rect x="{}" y="{}" width="10" height="13" rx="2" style="fill: var({}); stroke: var({})"/>')
    colours = {True: ("--c0", "--c0"), False: ("--paper", "--line")}
    cells = [cell.format(_LEFT + at * _CELL, row * _ROW, *colours[at in kept]) for at in range(before)]
    return Markup("").join(cells)


def _bar(row: int, left: int, width: int, share: float, colour: str) -> Markup:
    rect = Markup('<rect x="{}" y="{}" width="{:.1f}" height="13" rx="2" style="fill: var({})"/>')
    y = row * _ROW
    return rect.format(left, y, width, "--tint") + rect.format(left, y, share * width, colour)
