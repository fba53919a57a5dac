"""The pages of the benchmarks' results that are there: each is made from its JSON alone, and tells every goal."""

from __future__ import annotations

import html
import importlib
import json
import re
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PAGES = sorted(path.stem for path in RESULTS.glob("*.html"))


@pytest.mark.parametrize("name", PAGES)
def test_a_result_has_its_page(name: str, tmp_path: Path) -> None:
    result = json.loads((RESULTS / f"{name}.json").read_text())
    page = importlib.import_module(f"benchmarks.{name}.page").write_page(tmp_path, result)
    text = page.read_text()
    assert page.stat().st_size < 2_000_000
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import", text)
    shown = html.unescape(text)
    for goal in result["goals"]:
        assert goal["name"] in shown
        bound, met = goal.get("at_least"), goal.get("at_most")
        missed = goal["value"] < bound if bound is not None else goal["value"] > met
        row = shown[shown.index(goal["name"]) :].split("</tr>")[0]
        assert ("missed" in row) == missed
