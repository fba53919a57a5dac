"""`clipstill export`: a student in a form that others load."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, show

_SUMMARY = """\
Export a model, reload the export, compare the two, and only then call it done.

open_clip: for open_clip.create_model_and_transforms("local-dir:FOLDER"); holds every model that open_clip can build.
transformers: for CLIPModel.from_pretrained and CLIPProcessor.from_pretrained; holds plain ViT towers.
torchscript: for torch.jit.load, in the interface of teensy-tiny-clip; holds every model.
onnx: image and text encoder for batches of any size; holds every model. `pip install 'clipstill[onnx]'`
safetensors: weights and configuration, which every command here takes as MODEL; holds every model.

Each is a folder with a model card, README.md, that shows how to load it. The card of a model in a run's folder has the
run's data, teachers, settings and results.
"""

_FORMATS = ["open_clip", "transformers", "torchscript", "onnx", "safetensors"]


def add(commands: Subparsers) -> None:
    parser = add_command(
        commands, "export", _SUMMARY, "  clipstill export runs/vit-s/model --format transformers --out exports/vit-s\n"
    )
    parser.add_argument("model", metavar="MODEL", help="ARCH:TAG, ARCH:/path/to/weights, or a folder")
    parser.add_argument("--format", choices=_FORMATS, default="open_clip")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a folder that is empty or not there yet")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from clip_models import load_model  # noqa: PLC0415 - `--help` stays fast
    from distill.export import FORMATS, refuse_taken  # noqa: PLC0415

    refuse_taken(args.out)  # before a large model is loaded
    measured = FORMATS[args.format](load_model(args.model), args.out)
    show(f"exported as {args.format} to {args.out}; reloaded and compared, largest differences:")
    for name, value in measured.items():
        show(f"  {name:<40} {value:.3g}")
    return 0
