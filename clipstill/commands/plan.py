"""`clipstill plan`: what the whole job will take, before it is begun."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from clipstill.commands.common import Subparsers, add_command, show, show_json
from clipstill.options import add_options, given
from clipstill.parser import Parser
from shards.errors import UserError
from shards.quantities import GLUE, said_size
from shards.settings import make

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipstill.costs import CostSettings, StageCost

_SUMMARY = """\
Say what a whole job will take, from a list to students: requests, bytes, hours, money.

Rates and prices are yours; hours whose rate is not given stay open, and so does their money. Requests to a store count
where shards and cache lie on one. `clipstill cache plan` measures what a teacher takes, on a dataset that is there.
"""

_EXAMPLE = """\
  clipstill plan --rows 400e6 --found 0.7
  clipstill plan --rows 12.4e6 --cores 64 --ingest-rate 126 --gpus 8 --teacher-rate 2400 --student-rate 1800 \\
      --price core-hour=0.04 --price gpu-hour=2.5 --price gb-month=0.023 --price put=0.005 --price get=0.0004
"""


def add(commands: Subparsers) -> None:
    add_command(commands, "plan", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    from clipstill.costs import CostSettings  # noqa: PLC0415

    add_options(parser, CostSettings)
    parser.add_argument("--json", action="store_true", help="as JSON: requests, bytes, hours, money")


def run(args: argparse.Namespace) -> int:
    from clipstill.costs import CostSettings, costs  # noqa: PLC0415

    values = given(args, CostSettings)
    if "price" in values:
        values["price"] = dict(_price(text) for text in values["price"])
    settings = make(CostSettings, values)
    found = costs(settings)
    if args.json:
        show_json({"samples": settings.samples, "shards": settings.shards, "stages": [asdict(cost) for cost in found]})
        return 0
    show(f"{settings.rows:,.0f} rows, {settings.samples:,} samples in {settings.shards:,} shards\n")
    for line in _table(found):
        show(line)
    for line in _open(settings, found):
        show(line)
    return 0


def _price(text: str) -> tuple[str, float]:
    name, _, price = text.partition("=")
    try:
        return name, float(price)
    except ValueError:
        raise UserError(f"{price!r} is not a number", where=f"--price {text}", do="Write NAME=NUMBER") from None


def _table(found: Sequence[StageCost]) -> list[str]:
    heads = ["", "requests", "writes", "reads", "from the web", "read", "kept", "hours", "money"]
    rows = [heads]
    for cost in found:
        hours = (
            "?"
            if cost.hours is None
            else (f"{cost.hours:,.1f}" if cost.hours else "") + (f" ({cost.bound})" if cost.bound else "")
        )
        money = "?" if cost.money is None else f"{cost.money:,.2f}"
        counts = [f"{count:,}" if count else "" for count in (cost.web, cost.puts, cost.gets)]
        sizes = [said_size(size).replace(GLUE, " ") if size else "" for size in (cost.down, cost.read, cost.stored)]
        rows.append([cost.name, *counts, *sizes, hours, money])
    known = [cost.money for cost in found if cost.money is not None]
    if known:
        rows.append(["", *[""] * 7, f"{sum(known):,.2f}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return [
        "  ".join(
            word.ljust(width) if not at else word.rjust(width)
            for at, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _open(settings: CostSettings, found: Sequence[StageCost]) -> list[str]:
    """What would have to be given for what is open."""
    rates = {"ingest": "--ingest-rate", "cache": "--teacher-rate", "training": "--student-rate"}
    lacking = [rates[cost.name] for cost in found if cost.hours is None]
    lines = [f"\nhours are open without {', '.join(lacking)}"] if lacking else []
    if not settings.price:
        lines.append(f"{'' if lines else chr(10)}money is open without --price")
    return lines
