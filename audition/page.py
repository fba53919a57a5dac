"""The page of an audition: the winner and its margin, everybody's seeds, and how it was found."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from audition.settings import AuditionSettings
from audition.verdict import Verdict, in_words
from pages import render
from pages.words import in_words as settings_in_words
from pages.words import say_value

_LOOKS = 6


def page(settings: AuditionSettings, verdict: Verdict, figure: str, parts: dict[str, int]) -> bytes:
    """One HTML file. `figure`: what decides, in words; `parts`: how many samples were trained on and judged by."""
    teachers = list(dict.fromkeys(one.teacher for one in verdict.ranked))
    rows: list[dict[str, Any]] = [
        {
            "candidate": one,
            "low": min(one.figures),
            "high": max(one.figures),
            "look": f"c{teachers.index(one.teacher) % _LOOKS}",
        }
        for one in verdict.ranked
    ]
    told = {name: say_value(value) for name, value in settings_in_words(asdict(settings))}
    return render(
        "audition",
        "page.html.j2",
        verdict=verdict,
        said=in_words(verdict, figure),
        rows=rows,
        figure=figure,
        most=max(max(one.figures) for one in verdict.ranked),
        settings=told,
        parts=parts,
    )
