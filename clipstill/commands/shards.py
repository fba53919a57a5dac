"""`clipstill shards verify`: prove a dataset."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.parser import Parser

_SUMMARY = """\
Check a dataset byte by byte.

Sizes and hashes of every file, every tar member against the index, every image decoded, ledger rows and successes
against plan and tars, keys unique. Exit status 1 if anything is wrong; the last line then says which command mends it.
"""


def add(commands: Subparsers) -> None:
    parser = commands.add_parser("shards", help="Work on shards: verify.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add_command(actions, "verify", _SUMMARY, "  clipstill shards verify data/cc3m\n", run=run, fill=_options)


def _options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what `clipstill ingest` wrote")


def run(args: argparse.Namespace) -> int:
    from shards import verify_dataset  # noqa: PLC0415 - `--help` stays fast

    report = verify_dataset(args.folder)
    for problem in report.problems:
        show(problem)
    verdict = f"{len(report.problems)} problems" if report.problems else "sound"
    size = f"{report.bytes / 1e6:.1f} MB"
    show(f"{verdict}: {report.shards} shards, {report.rows} rows, {report.samples} samples, {size}")
    if report.mend:
        show(f"to mend it: {report.mend}")
    return 1 if report.problems else 0
