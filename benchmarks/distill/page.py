"""The result as a page: the losses, and how far they are apart, as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import render_page
from pages.curves import Frame, Line, curves

_CURVES = {"online": "live teacher", "float16": "float16 cache", "float32": "float32 cache"}
_LOOKS = {"online": 0, "float16": 7, "float32": 14}
"""Of losses, which lie over each other: solid, dashed, dotted."""


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/distill.html` for a published result; returns its path."""
    found = result["curves"]
    apart = {name: figures["relative"] for name, figures in found["differences"].items()}
    charts = [
        _panel("loss of each step", found["losses"], _LOOKS, log=False),
        _panel(
            "how far it is from the live teacher's, relative; gaps are no difference at all",
            apart,
            {"float16": 1, "float32": 2},
            log=True,
        ),
    ]
    return render_page(folder, result, names=_CURVES, charts=charts)


def _panel(title: str, found: Mapping[str, Sequence[float]], looks: Mapping[str, int], *, log: bool) -> dict[str, Any]:
    """Curves over steps from 1."""
    lines = [
        Line(look=looks[name], steps=np.arange(1.0, len(values) + 1), values=np.array(values))
        for name, values in found.items()
    ]
    frame = Frame(extents={"steps": float(max(map(len, found.values())))})
    return {
        "name": title,
        "title": title,
        "log": log,
        "wide": True,
        "legend": [(looks[name], _CURVES[name]) for name in found],
        "chart": curves(lines, frame, title, log=log, wide=True),
    }
