"""`clipstill export`: a student in a form that others load."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.parser import Parser
from distill.export import FORMATS
from shards.errors import UserError

_LINES = "\n".join(f"{name}: {format.about}" for name, format in FORMATS.items())
_SUMMARY = f"""\
Export a model, reload the export, compare the two, and only then call it done.

{_LINES}

Each is a folder with a model card, README.md, that shows how to load it. The card of a model in a run's folder has the
run's data, teachers, settings and results.

With --calibrate, onnx and transformers_js have 8 bits calibrated on pairs of that dataset, and the card says what they
lose in cosine and in retrieval on other pairs of it, and what they win in bytes and milliseconds.
"""


def add(commands: Subparsers) -> None:
    example = "  clipstill export runs/vit-s/model --format transformers --out exports/vit-s\n"
    add_command(commands, "export", _SUMMARY, example, run=run, fill=_options)


def _options(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ARCH:TAG, ARCH:/path/to/weights, or a folder")
    parser.add_argument("--format", choices=FORMATS, default="open_clip")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a folder that is empty or not there yet")
    parser.add_argument("--calibrate", metavar="SHARDS", help="a dataset to calibrate 8 bits on")
    parser.add_argument(
        "--most-loss",
        type=float,
        metavar="POINTS",
        help="of R@1 that 8 bits may lose on other pairs of it (default: 1)",
    )
    parser.add_argument(
        "--license", metavar="NAME", help="stated in the card, as the hub has it: apache-2.0, mit, other"
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="USER/NAME",
        help="also to the Hugging Face hub, where the token in $HF_TOKEN may write; $HF_ENDPOINT names another hub",
    )


def run(args: argparse.Namespace) -> int:
    from clip_models.spec import refuse_absent  # noqa: PLC0415
    from distill.export.hub import push, refuse_unpublishable  # noqa: PLC0415
    from distill.export.staging import refuse_taken  # noqa: PLC0415
    from shards import Dataset  # noqa: PLC0415

    _refuse_ignored(args)
    if args.license is not None and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", args.license) is None:
        do = "Give one of the hub's: apache-2.0, mit, other"
        raise UserError(f"{args.license!r} is no licence's identifier", where="--license", do=do)
    refuse_taken(args.out)
    refuse_absent(args.model)
    if args.push_to_hub is not None:
        refuse_unpublishable(args.push_to_hub)
    dataset = Dataset.open(args.calibrate) if args.calibrate is not None else None
    from clip_models import load_model  # noqa: PLC0415 - slow: what is wrong with paths is said before
    from distill.export import Calibration, Pairs  # noqa: PLC0415
    from distill.export.card import state_licence  # noqa: PLC0415

    calibration = None
    if dataset is not None:
        calibration = Calibration(Pairs.of(dataset), 1.0 if args.most_loss is None else args.most_loss)
    measured = FORMATS[args.format](load_model(args.model), args.out, calibration)
    if args.license is not None:
        state_licence(Path(args.out).expanduser(), args.license)
    show(f"exported as {args.format} to {args.out}; reloaded and compared, largest differences:")
    for name, value in measured.items():
        show(f"  {name:<40} {value:.3g}")
    if args.push_to_hub is not None:
        show(f"pushed to {push(args.out, args.push_to_hub)}")
    return 0


def _refuse_ignored(args: argparse.Namespace) -> None:
    """Raise `UserError` for options that would say nothing here."""
    if args.calibrate is not None and not FORMATS[args.format].calibrates:
        those = ", ".join(name for name, form in FORMATS.items() if form.calibrates)
        do = f"Formats with 8 bits are {those}"
        raise UserError(f"--calibrate says nothing of the format {args.format}", where=args.calibrate, do=do)
    if args.most_loss is not None and args.calibrate is None:
        raise UserError("--most-loss was given without --calibrate", do="Name a dataset to measure the loss on")
    if args.most_loss is not None and not 0 <= args.most_loss <= 100:
        raise UserError(f"--most-loss is {args.most_loss:g}", do="Give points of R@1, from 0 to 100")
