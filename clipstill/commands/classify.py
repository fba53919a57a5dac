"""`clipstill classify`: which label fits a picture best, by a student."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.commands.use import add_device, add_student, refuse_no_pictures
from clipstill.parser import Parser
from shards.errors import UserError

_BATCH = 32

_SUMMARY = """\
Say which label fits each picture, by a student.

One line of JSON a picture: the probability of each label, the likeliest first. STUDENT is a run, a model or a folder
that `clipstill export` wrote; those for ONNX are computed without torch.
"""

_EXAMPLE = """\
  clipstill classify runs/vit-s cat.jpg dog.jpg --labels cat,dog
  clipstill classify exports/vit-s photos/*.jpg --classes classes.json
"""


def add(commands: Subparsers) -> None:
    add_command(commands, "classify", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    add_student(parser)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a picture's file")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--labels", metavar="A,B,...", help="what to choose from")
    which.add_argument("--classes", metavar="FILE", help="JSON with classes and templates, as `evaluate` takes it")
    parser.add_argument("--template", action="append", metavar="TEXT", help="a prompt with {} in the label's place")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    from distill.use.student import TEMPLATES, prompts_of  # noqa: PLC0415
    from evaluation.prompts import read_classes  # noqa: PLC0415

    if args.classes and args.template:
        raise UserError("--template was given beside --classes, which has its own", do="Give one of the two")
    labels: Sequence[str] | Mapping[str, Sequence[str]] = [name.strip() for name in (args.labels or "").split(",")]
    templates = args.template or TEMPLATES
    if args.classes:
        file = read_classes(args.classes)
        if file.names is None:
            raise UserError("it names no classes", where=args.classes, do="Add a list `classes`")
        labels = file.names if file.own is None else {name: file.own.get(name, ()) for name in file.names}
        templates = file.templates or TEMPLATES
    prompts_of(labels, templates)
    refuse_no_pictures(args.student, args.images)
    from distill.use import load  # noqa: PLC0415 - slow: what is wrong with names is said before

    student = load(args.student, args.device)
    for start in range(0, len(args.images), _BATCH):
        paths = args.images[start : start + _BATCH]
        for path, found in zip(paths, student.classify(paths, labels, templates), strict=True):
            _tell(path, found)
    return 0


def _tell(path: str, found: dict[str, float]) -> None:
    labels = {name: round(share, 4) for name, share in found.items()}
    show(json.dumps({"image": path, "labels": labels}, ensure_ascii=False))
