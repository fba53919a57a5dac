"""`clipstill export`: a student in a form that others load."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, show

_SUMMARY = """\
Export a model, reload the export, compare the two, and only then call it done.

open_clip: a folder for open_clip.create_model_and_transforms("local-dir:FOLDER"); holds every model.
transformers: a folder for CLIPModel.from_pretrained and CLIPProcessor.from_pretrained; holds plain ViT towers.
"""


def add(commands: Subparsers) -> None:
    parser = add_command(
        commands, "export", _SUMMARY, "  clipstill export runs/vit-s/model --format transformers --out exports/vit-s\n"
    )
    parser.add_argument("model", metavar="MODEL", help="ARCH:TAG, ARCH:/path/to/weights, or a folder")
    parser.add_argument("--format", choices=["open_clip", "transformers"], default="open_clip")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a folder that is empty or not there yet")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from clip_models import load_model  # noqa: PLC0415 - `--help` stays fast
    from distill.export import FORMATS  # noqa: PLC0415

    measured = FORMATS[args.format](load_model(args.model), args.out)
    show(f"exported as {args.format} to {args.out}; reloaded and compared, largest differences:")
    for name, value in measured.items():
        show(f"  {name:<40} {value:.3g}")
    return 0
