"""A suite's table as one HTML page: ours beside the published rows, and accuracy drawn over what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.suites.rows import OURS
from evaluation.suites.suites import Suite
from evaluation.suites.table import cost_columns, say_cost, say_score
from pages import render
from pages.plot import Dot, scatter

_OVER = {"macs": "MACs (G)", "parameters": "parameters (M)"}


def suite_page(name: str, suite: Suite, told: Mapping[str, Any], results: Mapping[str, Any]) -> bytes:
    """`told`: as `table` makes it; `results`: as `evaluate_all` returns them."""
    return render(
        "evaluation.suites",
        "suite.html.j2",
        name=name,
        about=suite.about,
        columns=told["columns"],
        costs=cost_columns(told),
        rows=told["rows"],
        notes=told["notes"],
        gaps=told["gaps"],
        best=_best(told),
        ours=OURS,
        charts=_charts(suite, told),
        results=results["models"],
        differences=results.get("differences", {}),
        say_cost=say_cost,
        say_score=say_score,
    )


def _best(told: Mapping[str, Any]) -> dict[str, float | None]:
    """The highest score of each column."""
    found = {title: [row["scores"][title] for row in told["rows"]] for title in told["columns"]}
    return {title: max((one for one in values if one is not None), default=None) for title, values in found.items()}


def _charts(suite: Suite, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first columns over what models cost: one that nobody else has is not drawn."""
    sources = list(dict.fromkeys(row["source"] for row in told["rows"]))
    charts = []
    for title in told["columns"][:2]:
        cost = _OVER[suite.against]
        dots = [
            Dot(
                x=row[cost],
                y=row["scores"][title],
                name=row["name"],
                look=f"c{min(sources.index(row['source']), 5)}",
                loud=row["source"] == OURS,
            )
            for row in told["rows"]
            if row[cost] and row["scores"][title] is not None
        ]
        if len({dot.look for dot in dots}) > 1:
            charts.append({"title": f"{title}, %, over {cost}", "chart": scatter(dots, f"{title} over {cost}")})
    shown = [(f"c{min(at, 5)}", source) for at, source in enumerate(sources)]
    return [{**chart, "key": shown} for chart in charts]
