"""The result as one HTML file with nothing outside it, made from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shards import Folder

RATES = {
    "build": ("forwards_per_second", "forwards a second"),
    "read": ("samples_per_second", "samples a second of one core"),
    "rendering": ("samples_per_second", "views a second of one core"),
}
"""Part → where its rates are, and what they count."""


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/cache.html` for a published result; returns its path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(result=result, rates=RATES)
    Folder(folder).publish("cache.html", page.encode())
    return folder / "cache.html"
