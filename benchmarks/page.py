"""A benchmark's result as one HTML file with nothing outside it, made from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shards import Folder


def render_page(folder: Path, result: dict[str, Any], **values: Any) -> Path:
    """Write `folder/NAME.html` for the published result of benchmark NAME; returns its path.

    Its template is `NAME/page.html.j2`, which extends `base.html.j2` and sees the result and `values`.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    name = result["benchmark"]
    page = environment.get_template(f"{name}/page.html.j2").render(result=result, **values)
    Folder(folder).publish(f"{name}.html", page.encode())
    return folder / f"{name}.html"
