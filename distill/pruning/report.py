"""What pruning left of a student: as JSON, and drawn layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from markupsafe import Markup

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


def draw_architecture(report: dict[str, Any]) -> Markup:
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
