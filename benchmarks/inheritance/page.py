"""The result as a page: each figure as a chart over the steps, and what pruning kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from benchmarks.page import render_page
from distill.pruning.report import draw_architecture
from pages.curves import Frame, Line, curves

_FIGURES = {
    "top1": "zero-shot top-1, %",
    "top5": "zero-shot top-5, %",
    "image_to_text": "image→text R@5, %",
    "text_to_image": "text→image R@5, %",
}


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/inheritance.html` for a published result; returns its path."""
    return render_page(
        folder,
        result,
        figures=_FIGURES,
        charts={name: _chart(result, name) for name in _FIGURES},
        drawn=draw_architecture(result["pruning"][0]),
    )


def _chart(result: dict[str, Any], name: str) -> Markup:
    """A curve a seed, in the colour of its kind's place."""
    steps = np.array(result["steps"], float)
    lines = []
    for place, kind in enumerate(result["kinds"].values()):
        for values in zip(*(moment["runs"] for moment in kind["figures"][name]), strict=True):
            lines.append(Line(look=place, steps=steps, values=np.array(values)))
    return curves(lines, Frame(extents={"steps": float(steps[-1])}), _FIGURES[name])
