"""`clipstill export`: a student in a form that others load."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.parser import Parser
from distill.export import FORMATS

_LINES = "\n".join(f"{name}: {format.about}" for name, format in FORMATS.items())
_SUMMARY = f"""\
Export a model, reload the export, compare the two, and only then call it done.

{_LINES}

Each is a folder with a model card, README.md, that shows how to load it. The card of a model in a run's folder has the
run's data, teachers, settings and results.
"""


def add(commands: Subparsers) -> None:
    example = "  clipstill export runs/vit-s/model --format transformers --out exports/vit-s\n"
    add_command(commands, "export", _SUMMARY, example, run=run, fill=_options)


def _options(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ARCH:TAG, ARCH:/path/to/weights, or a folder")
    parser.add_argument("--format", choices=FORMATS, default="open_clip")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a folder that is empty or not there yet")


def run(args: argparse.Namespace) -> int:
    from clip_models.spec import refuse_absent  # noqa: PLC0415
    from distill.export import refuse_taken  # noqa: PLC0415

    refuse_taken(args.out)
    refuse_absent(args.model)
    from clip_models import load_model  # noqa: PLC0415 - slow: what is wrong with paths is said before

    measured = FORMATS[args.format](load_model(args.model), args.out)
    show(f"exported as {args.format} to {args.out}; reloaded and compared, largest differences:")
    for name, value in measured.items():
        show(f"  {name:<40} {value:.3g}")
    return 0
