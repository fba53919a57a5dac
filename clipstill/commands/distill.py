"""`clipstill distill`: train a student."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, show
from shards.errors import UserError

_SUMMARY = """\
Train a student from shards and a teacher cache; the teacher itself is not loaded.

The student is any open_clip architecture by name, or a JSON file in the format of open_clip's model_configs. Losses
add up: contrastive (CLIP), affinity (TinyCLIP), feature (CLIP-KD). With a cache the default is affinity, without one
contrastive. Goes on from the newest checkpoint in OUT; the student ends in OUT/model, an open_clip folder.
"""

_EXAMPLE = """\
  clipstill distill data/cc3m --cache data/cc3m-cache --student ViT-S-32 --loss affinity=1 --loss feature=2000 \\
      --epochs 25 --batch-size 1024 --precision bf16 --out runs/vit-s
  clipstill distill data/cc3m --student ViT-S-32 --epochs 25 --out runs/baseline      (plain CLIP, no teacher)
"""


def add(commands: Subparsers) -> None:
    parser = add_command(commands, "distill", _SUMMARY, _EXAMPLE)
    parser.add_argument("shards", metavar="SHARDS", help="what `clipstill ingest` wrote")
    parser.add_argument("--out", required=True, metavar="RUN", help="the run's folder")
    parser.add_argument("--student", required=True, metavar="MODEL", help="open_clip architecture or .json file")
    parser.add_argument("--cache", metavar="CACHE", help="what `clipstill cache build` wrote")
    parser.add_argument("--teacher-name", metavar="NAME", help="which teacher, if the cache holds several")
    parser.add_argument(
        "--join",
        choices=["error", "skip", "none"],
        default="error",
        help="when the cache is of other shards, or of a part: refuse; join by key and skip samples that it lacks; or "
        "train those without a teacher",
    )
    parser.add_argument(
        "--join-limit", type=float, default=0.01, metavar="SHARE", help="refuse to skip more than this share"
    )
    parser.add_argument(
        "--loss",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="contrastive, affinity or feature; repeatable",
    )
    parser.add_argument("--teacher-scale", type=float, metavar="T", help="logit scale to give the teacher (own)")
    parser.add_argument("--student-scale", type=float, metavar="T", help="logit scale to pin the student to (learned)")
    parser.add_argument("--views", type=int, default=1, metavar="K", help="views an image, without a cache")
    length = parser.add_argument_group("length and optimiser")
    length.add_argument("--epochs", type=float, metavar="E", help="passes over the dataset")
    length.add_argument("--steps", type=int, metavar="N", help="or optimiser steps")
    length.add_argument("--batch-size", type=int, default=256, metavar="B", help="global batch")
    length.add_argument("--lr", type=float, default=1e-3, help="peak learning rate; cosine to 0")
    length.add_argument("--warmup", type=int, default=500, metavar="N", help="steps of linear warm-up")
    length.add_argument("--weight-decay", type=float, default=0.2, metavar="W", help="AdamW's, of matrices")
    length.add_argument("--clip-norm", type=float, default=5.0, metavar="G", help="gradient norm limit, 0 for none")
    length.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="of the student's forward"
    )
    length.add_argument("--seed", type=int, default=0, help="of weights and order")
    keep = parser.add_argument_group("logs and checkpoints")
    keep.add_argument("--log-every", type=int, default=10, metavar="N", help="steps a log line")
    keep.add_argument("--checkpoint-every", type=int, default=500, metavar="N", help="steps a checkpoint")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from distill.settings import OptimiserSettings, RunSettings  # noqa: PLC0415 - `--help` stays fast
    from distill.train import train  # noqa: PLC0415

    result = train(
        RunSettings(
            shards=args.shards,
            out=args.out,
            student=args.student,
            cache=args.cache,
            teacher_name=args.teacher_name,
            join=args.join,
            join_limit=args.join_limit,
            losses=_losses(args.loss),
            steps=args.steps,
            epochs=args.epochs,
            batch_size=args.batch_size,
            views=args.views,
            optimiser=OptimiserSettings(
                lr=args.lr, warmup=args.warmup, weight_decay=args.weight_decay, clip_norm=args.clip_norm
            ),
            teacher_scale=args.teacher_scale,
            student_scale=args.student_scale,
            precision=args.precision,
            seed=args.seed,
            log_every=args.log_every,
            checkpoint_every=args.checkpoint_every,
        )
    )
    rate = f", {result.samples_per_second:,.0f} samples/s" if result.samples_per_second else ""
    show(f"{result.steps} steps, last loss {result.loss:.4f}{rate}; the student is in {result.model}")
    return 0


def _losses(texts: list[str]) -> dict[str, float]:
    losses: dict[str, float] = {}
    for text in texts:
        name, equals, weight = text.partition("=")
        try:
            losses[name] = float(weight) if equals else 1.0
        except ValueError:
            raise UserError(
                f"the weight {weight!r} is not a number", where=f"--loss {text}", do="Write NAME=WEIGHT"
            ) from None
    return losses
