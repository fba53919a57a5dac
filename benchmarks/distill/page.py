"""The result as one HTML file with nothing outside it, made from the JSON alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from distill.page.chart import Frame, Line, chart
from distill.page.run_folder import Series
from shards import Folder

_CURVES = {"online": "live teacher", "float16": "float16 cache", "float32": "float32 cache"}


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/distill.html` for a published result; returns its path."""
    found = result["curves"]
    apart = {name: figures["relative"] for name, figures in found["differences"].items()}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        result=result,
        names=_CURVES,
        losses=_chart(found["losses"], log=False),
        differences=_chart(apart, log=True),
    )
    Folder(folder).publish("distill.html", page.encode())
    return folder / "distill.html"


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
