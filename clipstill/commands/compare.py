"""`clipstill compare`: several training runs over each other on one page."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.parser import Parser

_SUMMARY = """\
Draw several runs over each other in one HTML page.

The page holds the curves over steps, samples seen or hours, each run's last and best figures, and the settings in
which they differ. Runs may be unfinished. What a single run did stands in RUN/report.html, which training writes.
"""

_EXAMPLE = "  clipstill compare runs/vit-s runs/baseline --out compare.html\n"


def add(commands: Subparsers) -> None:
    add_command(commands, "compare", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="what `clipstill distill` wrote; 2 to 18")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page; one that is there is replaced")


def run(args: argparse.Namespace) -> int:
    from distill.report import write_comparison  # noqa: PLC0415 - slow
    from shards.places import local_path  # noqa: PLC0415

    page = write_comparison([local_path(run, "a run's folder") for run in args.runs], local_path(args.out, "a page"))
    show(f"compared {len(args.runs)} runs: {page}")
    return 0
