"""`clipstill demo`: the whole path, on data it makes itself."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, cores, show
from clipstill.parser import Parser

_SUMMARY = """\
Run the whole path on scenes the demo draws itself; under 5 minutes on 2 cores, no network needed.

A local web server (with the failures of the real web) -> ingest on Ray -> a teacher trained from scratch -> teacher
cache -> students with and without distillation, three seeds each -> evaluation, speeds, exports -> tables and one HTML
page. Interrupt it at any moment; the same command goes on.
"""


def add(commands: Subparsers) -> None:
    example = "  clipstill demo --out demo-out\n  clipstill demo --out demo-b32 --teacher ViT-B-32:laion2b_s34b_b79k\n"
    add_command(commands, "demo", _SUMMARY, example, run=run, fill=_options)


def _options(parser: Parser) -> None:
    parser.add_argument("--out", default="demo-out", metavar="FOLDER", help="where everything goes")
    parser.add_argument("--teacher", metavar="SPEC", help="use this open_clip model instead of training a teacher")


def run(args: argparse.Namespace) -> int:
    from demo.launch import run_demo  # noqa: PLC0415 - `--help` stays fast
    from demo.settings import DemoSettings  # noqa: PLC0415

    page = run_demo(DemoSettings(out=args.out, teacher=args.teacher), cores())
    show(f"the page: {page}")
    return 0
