"""The result as a page: the losses, and how far they are apart, as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from benchmarks.page import render_page
from distill.report.chart import Frame, Line, chart
from distill.run_folder import Series

_CURVES = {"online": "live teacher", "float16": "float16 cache", "float32": "float32 cache"}


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/distill.html` for a published result; returns its path."""
    found = result["curves"]
    apart = {name: figures["relative"] for name, figures in found["differences"].items()}
    return render_page(
        folder,
        result,
        names=_CURVES,
        losses=_chart(found["losses"], log=False),
        differences=_chart(apart, log=True),
    )


def _chart(curves: Mapping[str, Sequence[float]], *, log: bool) -> Markup:
    """Curves over steps from 1, each in the colour of its name's place."""
    places = list(_CURVES)
    longest = max(map(len, curves.values()))
    lines = [
        Line(
            run=places.index(name),
            series=Series(np.arange(1.0, len(values) + 1), np.array(values)),
            across=lambda _, steps: steps,
        )
        for name, values in curves.items()
    ]
    return chart(lines, Frame(extents={"steps": float(longest)}), log=log, width=980, height=260)
