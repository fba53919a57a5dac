"""The result as a page: each class of lists has a table of its contenders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.ingest.classes import OWN_NETWORK, TITLES
from benchmarks.page import render_page


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/ingest.html` for a published result, whole or of some classes; returns its path."""
    titles = {name: title for name, title in TITLES.items() if name in result}
    return render_page(folder, result, titles=titles, own_network=OWN_NETWORK)
