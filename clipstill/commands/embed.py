"""`clipstill embed`: a student's embeddings of pictures and texts, in a file for numpy."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.commands.use import add_device, add_student, refuse_no_pictures
from clipstill.parser import Parser
from shards.errors import UserError

_SUMMARY = """\
Embed pictures and texts by a student, into a file for numpy.load.

FILE.npz holds `images` and `texts` (what was given), and `image_embeddings` and `text_embeddings`, (n, D) float32 of
unit norm, in the same order.
"""

_EXAMPLE = """\
  clipstill embed runs/vit-s photos/*.jpg --text "a photo of a cat" --out embedded.npz
"""


def add(commands: Subparsers) -> None:
    add_command(commands, "embed", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    add_student(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="a picture's file")
    parser.add_argument("--text", action="append", default=[], metavar="TEXT", help="a text; may be given repeatedly")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="a file that is not there yet")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from shards.places import refuse_unwritable  # noqa: PLC0415

    out = Path(args.out)
    if out.suffix != ".npz":
        raise UserError("the embeddings' file ends in .npz", where=args.out, do=f"Give {args.out}.npz")
    if out.exists():
        raise UserError("there is something already", where=args.out, do="Name another file or remove this one")
    if not args.images and not args.text:
        raise UserError("neither pictures nor texts were given", where="embed", do="Give IMAGE or --text")
    refuse_unwritable(out.parent)
    refuse_no_pictures(args.student, args.images)
    import numpy as np  # noqa: PLC0415

    from distill.use import load  # noqa: PLC0415 - slow: what is wrong with names is said before
    from shards import Folder  # noqa: PLC0415

    student = load(args.student, args.device)
    arrays: dict[str, np.ndarray] = {}
    if args.text:
        arrays |= {"texts": np.array(args.text), "text_embeddings": student.embed_texts(args.text)}
    if args.images:
        arrays |= {"images": np.array(args.images), "image_embeddings": student.embed_images(args.images)}
    with Folder(str(out.parent)).staged(out.name) as path, Path(path).open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    show(f"{len(args.images)} pictures and {len(args.text)} texts embedded into {args.out}")
    return 0
