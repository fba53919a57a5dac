"""The result as one HTML file with nothing outside it, made from the JSON alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from shards import Folder

TITLES = {
    "http": "800 × 600 over http",
    "https": "800 × 600 over https",
    "https_closed": "800 × 600 over https, a connection for each image",
    "large": "2048 × 1536 over http",
}


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/ingest.html` for a published result; returns its path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        result=result, titles=TITLES, charts={name: _chart(result[name]) for name in TITLES}
    )
    Folder(folder).publish("ingest.html", page.encode())
    return folder / "ingest.html"


def _chart(part: dict[str, Any]) -> str:
    """Images a second of every contender, median and range, as inline SVG with text as text."""
    contenders = part["contenders"]
    figure = Figure(figsize=(9, 0.5 + 0.5 * len(contenders)), layout="constrained")
    axis = figure.subplots()
    for place, (name, figures) in enumerate(reversed(contenders.items())):
        rate = figures["rate"]
        reach = [[rate["median"] - rate["low"]], [rate["high"] - rate["median"]]]
        colour = "#2563eb" if name.startswith("ours") else "#9ca3af"
        axis.barh(place, rate["median"], 0.6, xerr=reach, color=colour, capsize=3)
    axis.set_yticks(range(len(contenders)), list(reversed(contenders)))
    axis.set(xlabel="images a second (median, range)")
    axis.spines[["top", "right"]].set_visible(False)
    sink = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "clipstill"}):
        figure.savefig(sink, format="svg", metadata={"Date": None})
    text = sink.getvalue()
    return text[text.index("<svg") :]
