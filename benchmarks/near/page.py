"""The result as a page: each kind of hashes at each distance, and what becomes of a photo's hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page import render_page


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write `folder/near.html` for a published result; returns its path."""
    return render_page(folder, result)
