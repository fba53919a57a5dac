"""The result as a page: the rates of all contenders as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page import render_page

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
    return render_page(folder, result, titles=TITLES, names=NAMES)
