"""`clipstill compare`: several training runs over each other on one page."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, show
from shards.places import local_path

_SUMMARY = """\
Draw several runs over each other in one HTML page.

The page holds the curves over steps, samples seen or hours, each run's last and best figures, and the settings in
which they differ. Runs may be unfinished. What a single run did stands in RUN/report.html, which training writes.
"""

_EXAMPLE = "  clipstill compare runs/vit-s runs/baseline --out compare.html\n"


def add(commands: Subparsers) -> None:
    parser = add_command(commands, "compare", _SUMMARY, _EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="what `clipstill distill` wrote; 2 to 18")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page; one that is there is replaced")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distill.report import write_comparison  # noqa: PLC0415 - `--help` stays fast

    page = write_comparison([local_path(run, "a run's folder") for run in args.runs], local_path(args.out, "a page"))
    show(f"compared {len(args.runs)} runs: {page}")
    return 0
