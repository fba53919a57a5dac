"""A benchmark's result as one HTML file with nothing outside it, made from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pages import render
from shards import Folder


def render_page(folder: Path, result: dict[str, Any], **values: Any) -> Path:
    """Write `folder/NAME.html` for the published result of benchmark NAME; returns its path.

    Its template is `NAME/page.html.j2`, which extends `benchmark.html.j2` and sees the result and `values`.
    """
    name = result["benchmark"]
    page = render("benchmarks", f"{name}/page.html.j2", result=result, **values)
    Folder(folder).publish(f"{name}.html", page)
    return folder / f"{name}.html"
