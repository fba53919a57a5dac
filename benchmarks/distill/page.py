"""The result as a page: the losses, and how far they are apart, as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from benchmarks.page import render_page
from pages.curves import Frame, Line, curves

_CURVES = {"online": "live teacher", "float16": "float16 cache", "float32": "float32 cache"}


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/distill.html` for a published result; returns its path."""
    found = result["curves"]
    apart = {name: figures["relative"] for name, figures in found["differences"].items()}
    return render_page(
        folder,
        result,
        names=_CURVES,
        losses=_chart(found["losses"], "loss of each step", log=False),
        differences=_chart(apart, "distance from the live teacher's loss", log=True),
    )


def _chart(found: Mapping[str, Sequence[float]], label: str, *, log: bool) -> Markup:
    """Curves over steps from 1, each in the colour of its name's place."""
    places = list(_CURVES)
    longest = max(map(len, found.values()))
    lines = [
        Line(look=places.index(name), steps=np.arange(1.0, len(values) + 1), values=np.array(values))
        for name, values in found.items()
    ]
    return curves(lines, Frame(extents={"steps": float(longest)}), label, log=log, wide=True)
