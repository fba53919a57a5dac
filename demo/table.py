"""The demo's closing tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from pages.words import say_ratio


def print_tables(console: Console, results: dict[str, Any]) -> None:
    """Rows and failures, the cache, the steps, and the scores of teacher, baseline and distilled student."""
    console.print(_rows(results["ingest"]))
    cache = results["cache"]
    console.print(
        f"teacher cache: {cache['bytes_a_sample']:,.0f} bytes a sample ({cache['views']} views and a caption); "
        f"{cache['recomputed']} rows recomputed, largest logit drift {cache['logit_drift']:.4f}"
    )
    console.print(_steps(results["speed"]))
    console.print(_scores(results["spread"]))


def _rows(ingested: dict[str, Any]) -> Table:
    causes = sorted({cause for split in ingested.values() for cause in split["failed"]})
    table = Table("", *ingested, title="rows")
    table.add_row("rows in", *(f"{split['rows']}" for split in ingested.values()))
    table.add_row("downloaded", *(f"{split['samples']}" for split in ingested.values()))
    for cause in causes:
        table.add_row(f"failed: {cause}", *(f"{split['failed'].get(cause, 0)}" for split in ingested.values()))
    return table


def _steps(speed: dict[str, Any]) -> Table:
    table = Table("training step", "images/s", "range", "beside plain CLIP", title="speed")
    names = {
        "baseline": "plain CLIP, no teacher",
        "cached": "distilled from the cache",
        "online": "distilled, teacher running online",
    }
    for kind, name in names.items():
        row = speed[kind]
        ratio = say_ratio(row, speed["baseline"]) or "the same within the spread"
        table.add_row(name, f"{row['median']:.0f}", f"{row['low']:.0f} to {row['high']:.0f}", ratio)
    return table


def _scores(spread: dict[str, Any]) -> Table:
    table = Table("held-out, %", "teacher", "baseline (range)", "distilled (range)", "ranges apart", title="scores")
    for measure, row in spread.items():
        cells = [f"{row[kind]['mean']:.1f} ({row[kind]['low']:.1f} to {row[kind]['high']:.1f})" for kind in _KINDS]
        table.add_row(measure, f"{row['teacher']:.1f}", *cells, "yes" if row["separated"] else "no")
    return table


_KINDS = ("baseline", "distilled")
