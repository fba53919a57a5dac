"""`clipstill distill`: train a student."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.options import add_options, given
from clipstill.parser import Parser
from shards.errors import UserError

if TYPE_CHECKING:
    from distill.loss_term import LossTerm

_SUMMARY = """\
Train a student from shards and a teacher cache; the teacher itself is not loaded.

The student is a published one or any open_clip architecture by name (`clipstill models`), timm/NAME for any image
model of timm's, a JSON file in the format of open_clip's model_configs, or a model's folder. What to do with it comes
from a recipe, from the options here, or from both: an option overrides the recipe. `--recipe list` shows the recipes,
and `--recipe NAME --smoke` tries one on a few images that it draws itself.

Several datasets train one student: every batch has its share of each. An epoch shows every sample once, or of a
dataset with --weight as much or as little more.

Losses add up. With neither --loss nor a recipe it is affinity with a cache, contrastive without. A run goes on from the
newest checkpoint in OUT; the student ends in OUT/model, an open_clip folder. Ctrl-C and SIGTERM end a run after the
step under way, with a checkpoint; the same again ends it at once.

Several processes train one student where `torchrun --nproc-per-node N -m clipstill distill ...` starts them, or with
--launcher ray. The batch is then dealt out to them, and the gradients are those of one process (but for dropout and
masks, which are each process's own).
"""

_EXAMPLE = """\
  clipstill distill data/cc3m --cache data/cc3m-cache --recipe clip-kd --out runs/vit-t
  clipstill distill data/cc3m --cache data/cc3m-cache --student ViT-S-32 --loss affinity=1 --loss fd=0:0,0.1:2000 \\
      --epochs 25 --batch-size 1024 --precision bf16 --eval data/val --out runs/vit-s
  clipstill distill data/cc3m data/cc12m --cache data/cc3m-cache --cache data/cc12m-cache --weight cc12m=0.5 \\
      --recipe clip-kd --out runs/vit-t-15m
  clipstill distill data/cc3m --student ViT-S-32 --epochs 25 --out runs/baseline      (plain CLIP, no teacher)
"""


def add(commands: Subparsers) -> None:
    usage = "clipstill distill [SHARDS ...] [--recipe NAME] [--out RUN] [OPTION ...]"
    add_command(commands, "distill", _SUMMARY, _EXAMPLE, run=run, fill=_options, usage=usage)


def _options(parser: Parser) -> None:
    from distill.settings import RunSettings  # noqa: PLC0415 - each command imports its own settings alone

    parser.add_argument("--recipe", metavar="NAME", help="a recipe's name, or a .toml file; list: which there are")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="only a few steps of a small batch, on images and teachers of its own unless SHARDS and --cache are given",
    )
    add_options(parser, RunSettings, overriding=True)
    where = parser.section("where it runs")
    where.add_argument("--launcher", choices=["here", "ray"], default="here", help="ray: in processes of a Ray cluster")
    where.add_argument("--processes", type=int, metavar="N", help="how many on Ray (default: one a GPU)")
    where.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster (default: Ray on this machine)")


def run(args: argparse.Namespace) -> int:
    if args.recipe == "list":
        return _list()
    from distill.datasets import on_other_data  # noqa: PLC0415
    from distill.recipe import load_recipe, settings_from  # noqa: PLC0415
    from distill.training.launch import launch  # noqa: PLC0415

    start = partial(launch, launcher=args.launcher, processes=args.processes, address=args.ray_address)
    recipe = load_recipe(args.recipe) if args.recipe else {}
    if args.smoke:
        from demo.launch import run_smoke  # noqa: PLC0415

        _say(run_smoke(recipe, _given(args), start))
        return 0
    settings = settings_from(recipe, **_given(args))
    if settings.prune and not settings.initial:
        raise UserError(
            "pruning begins with trained weights, and none are given",
            where="--prune",
            do="Give --initial: the teacher, or the model/ of the stage before",
        )
    if note := on_other_data(settings.recipe, settings.shards, settings.datasets):
        _say(note)
    result = start(settings)
    rate = f", {result.samples_per_second:,.0f} samples/s" if result.samples_per_second else ""
    best = result.best
    kept = (
        f"; the best, {best['metric']} {best['value']:.4g} at step {best['step']}, is in {settings.out}/best"
        if best
        else ""
    )
    _say(f"{result.steps} steps, last loss {result.loss:.4f}{rate}; the student is in {result.model}{kept}")
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What was given on the command line, in the form of a recipe."""
    from distill.settings import RunSettings  # noqa: PLC0415

    values = given(args, RunSettings)
    for name, flag, read in (("losses", "--loss", _loss), ("weights", "--weight", _weight)):
        if name in values:
            pairs = [read(text) for text in values[name]]
            values[name] = dict(pairs)
            if len(values[name]) < len(pairs):
                raise UserError("a name is given twice", where=flag, do="Give each once")
    if "teacher_scale" in values:
        values["teacher_scale"] = _scale(values["teacher_scale"])
    return values


def _scale(texts: Sequence[str]) -> dict[str, float] | float | None:
    """One for all teachers, "none" for their own, or each by its teacher's name."""
    flag = "--teacher-scale"
    if len(texts) == 1 and "=" not in texts[0]:
        if texts[0] == "none":
            return None
        try:
            return float(texts[0])
        except ValueError:
            raise UserError(f"{texts[0]!r} is not a number", where=flag, do="Write T, NAME=T or none") from None
    pairs = []
    for text in texts:
        name, _, scale = text.rpartition("=")
        if not name:
            raise UserError("a scale for all, beside others", where=f"{flag} {text}", do="Write NAME=T for each")
        try:
            pairs.append((name, float(scale)))
        except ValueError:
            raise UserError(f"{scale!r} is not a number", where=f"{flag} {text}", do="Write NAME=T") from None
    if len(dict(pairs)) < len(pairs):
        raise UserError("a name is given twice", where=flag, do="Give each once")
    return dict(pairs)


def _weight(text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        told = f"{weight!r} is not a number"
        raise UserError(told, where=f"--weight {text}", do="Write SHARDS=NUMBER") from None


def _loss(text: str) -> tuple[str, LossTerm]:
    from distill.loss_term import LossTerm  # noqa: PLC0415

    name, equals, weight = text.partition("=")
    try:
        if ":" not in weight:
            return name, LossTerm(weight=float(weight) if equals else 1.0)
        points = [point.split(":") for point in weight.split(",")]
        return name, LossTerm(weight=tuple((float(through), float(value)) for through, value in points))
    except ValueError:
        raise UserError(
            f"the weight {weight!r} is not a number",
            where=f"--loss {text}",
            do="Write NAME=WEIGHT, or NAME=0:0,0.1:2000",
        ) from None


def _list() -> int:
    from distill.recipe import list_recipes  # noqa: PLC0415

    for recipe in list_recipes():
        student = recipe.student or "the student that is given"
        show(f"{recipe.name}\n    {recipe.about}\n    {student}; {' + '.join(recipe.losses)}")
    return 0


def _say(text: str) -> None:
    """Of the processes that `torchrun` starts, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        show(text)
