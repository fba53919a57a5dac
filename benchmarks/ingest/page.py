"""The result as a page: each way of fetching has a table of its contenders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page import render_page

TITLES = {
    "http": "800 × 600 over http",
    "https": "800 × 600 over https",
    "https_closed": "800 × 600 over https, a connection for each image",
    "large": "2048 × 1536 over http",
}


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/ingest.html` for a published result; returns its path."""
    return render_page(folder, result, titles=TITLES)
