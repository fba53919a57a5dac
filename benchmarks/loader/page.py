"""The result as one HTML file with nothing outside it, made from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shards import Folder

TITLES = {
    "one_core": "One core, crops of 90 to 100 % of the area",
    "two_cores": "Two cores",
    "one_core_wide": "One core, crops of 8 to 100 %",
}
NAMES = {
    "ours": "Clipstill",
    "open_clip": "open_clip's pipeline",
    "torchvision": "torchvision decode + v2 crop, uint8",
    "spdl": "SPDL, uint8",
    "dali": "DALI on the CPU, uint8",
}


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/loader.html` for a published result; returns its path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(result=result, titles=TITLES, names=NAMES)
    Folder(folder).publish("loader.html", page.encode())
    return folder / "loader.html"
