"""The result as a page: its rates as bars, and its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page import render_page

RATES = {
    "build": ("forwards_per_second", "forwards a second"),
    "read": ("samples_per_second", "samples a second of one core"),
    "rendering": ("samples_per_second", "views a second of one core"),
}
"""Part → where its rates are, and what they count."""


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/cache.html` for a published result; returns its path."""
    return render_page(folder, result, rates=RATES)
