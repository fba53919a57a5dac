"""The kit of all pages: one style, one policy, charts that tell what they were given, and words that state no noise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pages.axis import Axis
from pages.plot import FINE, WIDTH, dots, histogram
from pages.sheet import drawn
from pages.words import in_words, say_ratio, say_value

ROOT = Path(__file__).parents[2]
TEMPLATES = [path for path in ROOT.glob("**/*.j2") if ".venv" not in path.parts]


def test_there_is_one_page_system() -> None:
    """A document, its policy, its colours, its light and dark, narrow and printed looks are said in the kit alone."""
    assert len(TEMPLATES) >= 10
    for path in TEMPLATES:
        text = path.read_text()
        if path.parent.name == "pages":
            continue
        assert text.startswith("{% extends"), path
        for word in ("<!doctype", "Content-Security-Policy", "prefers-color-scheme", ":root", "#fff", "font-family"):
            assert word not in text, f"{path} says {word}"
    style = (ROOT / "pages" / "style.html.j2").read_text()
    for rule in ("screen and (prefers-color-scheme: dark)", "(max-width: 720px)", "@media print"):
        assert style.count(rule) == 1, rule


def test_a_chart_is_as_wide_as_its_place_and_its_text_keeps_its_size() -> None:
    """Only what is stretched lies in a view box; texts stand outside it, at shares of the width."""
    svg = ElementTree.fromstring(histogram(Axis(0, 4), [("area c0", np.arange(5.0), np.array([1, 4, 2, 0]))], "x"))
    assert "viewBox" not in svg.attrib
    (inner,) = [part for part in svg.iter("svg") if part is not svg]
    assert inner.get("preserveAspectRatio") == "none"
    assert not list(inner.iter("text"))
    across = {text.text: text.get("x") for text in svg.iter("text") if "across" in str(text.get("class"))}
    assert (across["0"], across["2"], across["4"]) == ("0%", "50%", "100%")


def test_of_many_ticks_every_other_one_goes_where_the_page_is_narrow() -> None:
    svg = ElementTree.fromstring(histogram(Axis(0, 10), [], "x", most=10))
    kinds = [str(text.get("class")) for text in svg.iter("text") if "across" in str(text.get("class"))]
    assert kinds == ["across", "across fine"] * 5 + ["across"]
    assert "svg .fine { display: none; }" in (ROOT / "pages" / "style.html.j2").read_text()


def test_steps_are_as_high_as_their_values() -> None:
    values = np.array([1.0, 4.0, 2.0, 0.0])
    svg = histogram(Axis(0, 4), [("area c0", np.arange(5.0), values)], "x")
    path = ElementTree.fromstring(svg).find(".//path")
    assert path is not None
    numbers = re.findall(r"[MVH][\d ]+", path.attrib["d"])
    base = int(numbers[0].split()[1])
    heights = [base - int(part[1:]) for part in numbers[1::2]]
    assert np.array(heights[:-1]) / heights[1] == pytest.approx(values / 4, abs=0.001)
    assert [int(part[1:]) for part in numbers[2::2]] == [WIDTH // 4, WIDTH // 2, 3 * WIDTH // 4, WIDTH]
    # The highest step nearly fills the chart: 190 pixels but for the ticks below.
    assert 140 < heights[1] / FINE <= 160


def test_dots_name_the_odd_ones() -> None:
    values = np.array([0.5, np.nan, 0.52, 0.1])
    odd = np.array([False, False, False, True])
    svg = ElementTree.fromstring(dots(values, odd, ["00000", "00001", "00002", "00003"], 0.5, "x"))
    circles = {str(circle.findtext("title")).split(":")[0]: circle for circle in svg.iter("circle")}
    assert sorted(circles) == ["00000", "00002", "00003"]
    assert "bad" in circles["00003"].attrib["class"]
    assert [text.text for text in svg.iter("text") if text.get("class") == "loud"] == ["00003"]
    places = {name: float(circle.attrib["cy"]) for name, circle in circles.items()}
    assert places["00002"] < places["00000"] < places["00003"]


def figure(median: float, low: float, high: float) -> dict[str, float]:
    return {"median": median, "low": low, "high": high}


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (figure(450, 330, 505), figure(400, 300, 495), None),
        (figure(450, 440, 460), figure(100, 90, 110), "4.50×"),
        (figure(40, 39, 41), figure(100, 90, 110), "0.40×"),
        (figure(100, 100, 100), figure(100, 100, 100), None),
        (figure(176, 125, 210), figure(296, 207, 379), "0.59×"),
    ],
    ids=["ranges overlap", "faster", "slower", "equal", "ranges touch at their ends"],
)
def test_what_lies_within_the_spread_is_no_news(one: Any, other: Any, said: str | None) -> None:
    assert say_ratio(one, other) == said


def test_settings_have_names_and_values_in_words() -> None:
    settings = {
        "teachers": [{"logit_scale": 100.0, "bias": None}, {"logit_scale": 1.5}],
        "losses": {"fd": {"weight": 2000.0, "options": {}}},
        "views": {"scale": [0.9, 1], "steps": [[0, 1], [0.5, 0.25]]},
        "frozen": True,
        "empty": [],
    }
    assert {name: say_value(value) for name, value in in_words(settings)} == {
        "teacher 1 logit scale": "100",
        "teacher 1 bias": "none",
        "teacher 2 logit scale": "1.5",
        "loss fd weight": "2000",
        "views scale": "0.9, 1",
        "views steps": "(0, 1), (0.5, 0.25)",
        "frozen": "yes",
    }


def test_a_sheet_has_random_samples_ever_the_same() -> None:
    counts = [5, 0, 40, 3]
    places = drawn(counts, "set", 24)
    assert len(set(places)) == 24
    assert all(0 <= row < counts[place] for place, row in places)
    assert places == drawn(counts, "set", 24) != drawn(counts, "other", 24)
    assert sorted(drawn([2, 0, 1], "set", 24)) == [(0, 0), (0, 1), (2, 0)]
    assert drawn([], "set", 24) == drawn([0, 0], "set", 24) == []
