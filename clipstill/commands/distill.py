"""`clipstill distill`: train a student."""

from __future__ import annotations

import argparse
import ast
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipstill.commands.common import Subparsers, add_command, show
from shards.errors import UserError

if TYPE_CHECKING:
    from distill.settings import LossTerm

_SUMMARY = """\
Train a student from shards and a teacher cache; the teacher itself is not loaded.

The student is a published one or any open_clip architecture by name (`clipstill models`), timm/NAME for any image
model of timm's, a JSON file in the format of open_clip's model_configs, or a model's folder. What to do with it comes
from a recipe, from the options here, or from both: an option overrides the recipe. `--recipe list` shows the recipes,
and `--recipe NAME --smoke` tries one on a few images that it draws itself.

Losses add up. With neither --loss nor a recipe it is affinity with a cache, contrastive without. A run goes on from the
newest checkpoint in OUT; the student ends in OUT/model, an open_clip folder. Ctrl-C and SIGTERM end a run after the
step under way, with a checkpoint (with --launcher ray at once, at the last one); the same again ends it at once.

Several processes train one student where `torchrun --nproc-per-node N -m clipstill distill ...` starts them, or with
--launcher ray. The batch is then dealt out to them, and the gradients are those of one process (but for batch norms,
dropout and masks, which are each process's own).
"""

_EXAMPLE = """\
  clipstill distill data/cc3m --cache data/cc3m-cache --recipe clip-kd --out runs/vit-t
  clipstill distill data/cc3m --cache data/cc3m-cache --student ViT-S-32 --loss affinity=1 --loss fd=0:0,0.1:2000 \\
      --epochs 25 --batch-size 1024 --precision bf16 --eval data/val --out runs/vit-s
  clipstill distill data/cc3m --student ViT-S-32 --epochs 25 --out runs/baseline      (plain CLIP, no teacher)
"""

_TABLES = {"OptimiserSettings": "optimiser.", "EvaluationSettings": "evaluation.", "RunSettings": ""}

Option = Callable[..., None]


def add(commands: Subparsers) -> None:
    parser = add_command(commands, "distill", _SUMMARY, _EXAMPLE)
    parser.usage = "clipstill distill [SHARDS] [--recipe NAME] [--out RUN] [OPTION ...]"
    defaults = _defaults()

    def section(title: str) -> Option:
        return partial(_add_option, parser.add_argument_group(title), defaults)

    nothing = argparse.SUPPRESS
    parser.add_argument("shards", nargs="?", default=nothing, metavar="SHARDS", help="what `clipstill ingest` wrote")
    parser.add_argument("--out", default=nothing, metavar="RUN", help="the run's folder")
    parser.add_argument("--recipe", metavar="NAME", help="a recipe's name, or a .toml file; list: which there are")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="only a few steps of a small batch, on images and teachers of its own unless SHARDS and --cache are given",
    )
    _add_student(section("student"))
    _add_teachers(section("data and teachers"))
    _add_losses(section("losses"))
    _add_optimiser(section("length and optimiser"))
    _add_computing(section("how it is computed"))
    _add_record(section("evaluation, logs and checkpoints"))
    where = parser.add_argument_group("where it runs")
    where.add_argument("--launcher", choices=["here", "ray"], default="here", help="ray: in processes of a Ray cluster")
    where.add_argument("--processes", type=int, metavar="N", help="how many on Ray (default: one a GPU)")
    where.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster (default: Ray on this machine)")
    parser.set_defaults(run=run)


def _add_student(option: Option) -> None:
    option("student", metavar="MODEL", help="a name, timm/NAME, a .json file, or a model's folder")
    option(
        "initial",
        metavar="MODEL",
        help="start from these weights: ARCH:TAG, ARCH:FILE or a folder; without --student that model goes on",
    )
    option("text_tower", choices=["own", "cache"], help="cache: the teacher's text embeddings stand in for one")
    option("lock", action="append", choices=["image", "text"], help="a tower that is not trained; repeatable")
    option(
        "prune.target",
        "--prune",
        type=float,
        metavar="SHARE",
        help="learn to leave out this share of the full model's attention and MLPs, and deliver the rest",
    )
    option(
        "prune.start",
        "--prune-start",
        type=float,
        metavar="SHARE",
        help="begin to ask for this share (what the student has lost already)",
    )
    option("prune.ramp", "--prune-ramp", type=int, metavar="N", help="steps from that share to the whole (1000)")
    option(
        "prune.lr",
        "--prune-lr",
        type=float,
        metavar="RATE",
        help="of the masks (0.02: none closes before step 300 or so)",
    )
    option(
        "prune.removed",
        "--prune-removed",
        choices=["gone", "reference"],
        help="how to count what earlier stages removed (gone); reference: as 4.7%% still there, as in TinyCLIP's code, "
        "which then removes about 2 points more",
    )
    option("patch_mask", type=float, metavar="SHARE", help="of its patches that a ViT does not see in training")


def _add_teachers(option: Option) -> None:
    option("cache", metavar="CACHE", help="what `clipstill cache build` wrote")
    option(
        "teachers",
        "--teacher",
        action="append",
        metavar="NAME",
        help="a teacher in the cache; repeatable (its only one)",
    )
    option(
        "captions",
        action="append",
        metavar="SET",
        help="a caption set of each step; repeatable, the loss is their mean. Without "
        "a cache txt, json:FIELD*N or table:FILE#COLUMN*N",
    )
    option(
        "join",
        choices=["error", "skip", "none"],
        help="when the cache is of other shards, or of a part: refuse; join by key and skip samples that it lacks; or "
        "train those without a teacher",
    )
    option("join_limit", type=float, metavar="SHARE", help="refuse to skip more than this share")
    option("views", type=int, metavar="K", help="views an image, without a cache")


def _add_losses(option: Option) -> None:
    option(
        "losses",
        "--loss",
        action="append",
        metavar="NAME=WEIGHT",
        help="contrastive, affinity, crd, fd, gd, icl, afd, reinforcement, sigmoid, sigmoid_affinity; repeatable, and "
        "then none of the recipe's. NAME=0:0,0.1:2000 is a weight that rises through the first tenth of the run",
    )
    option("teacher_scale", type=number_or_none, metavar="T", help="the teachers' logit scale; none: each has its own")
    option("student_scale", type=number_or_none, metavar="T", help="the student's, pinned; none: it is learned")
    option("max_scale", type=float, metavar="T", help="the most that a learned one may be")


def _add_optimiser(option: Option) -> None:
    option("epochs", type=float, metavar="E", help="passes over the dataset")
    option("steps", type=int, metavar="N", help="or optimiser steps")
    option("batch_size", type=int, metavar="B", help="global batch")
    option("optimiser.lr", type=float, metavar="LR", help="peak learning rate")
    option("optimiser.schedule", choices=["cosine", "constant", "wsd"], help="wsd: constant, then down through --decay")
    option(
        "optimiser.warmup",
        type=int,
        metavar="N",
        help="steps of linear warm-up (500, or the recipe's, within a tenth of the run)",
    )
    option("optimiser.final_lr", type=float, metavar="LR", help="where cosine and wsd end")
    option("optimiser.decay", type=float, metavar="SHARE", help="the last part of the run, for wsd")
    option("optimiser.weight_decay", type=float, metavar="W", help="AdamW's, of matrices")
    option("optimiser.betas", type=float, nargs=2, metavar="B", help="AdamW's")
    option("optimiser.clip_norm", type=float, metavar="G", help="gradient norm limit, 0 for none")
    option(
        "optimiser.ema", type=number_or_none, metavar="DECAY", help="deliver weights averaged over steps; none: do not"
    )
    option("seed", type=int, metavar="N", help="of weights and order")


def _add_computing(option: Option) -> None:
    switch = argparse.BooleanOptionalAction
    option("precision", choices=["fp32", "bf16", "fp16"], help="of the student's forward")
    option("micro_batches", type=int, metavar="N", help="in so many pieces; the loss still sees the whole batch")
    option("checkpoint_activations", action=switch, help="compute activations again instead of keeping them")
    option("compile", action=switch, help="torch.compile the student: minutes first, then faster")


def _add_record(option: Option) -> None:
    option("evaluation.shards", "--eval", metavar="SHARDS", help="evaluate on this dataset in the run, and at its end")
    option("evaluation.every", "--eval-every", type=int, metavar="N", help="steps an evaluation")
    option("evaluation.classes", metavar="FILE", help="JSON with classes and templates, for zero-shot")
    option("evaluation.label", metavar="COLUMN", help="the metadata column that names a sample's class")
    option("evaluation.best", metavar="FIGURE", help="keep the best checkpoint by it, as logged: eval/zero_shot/top1")
    option("log_every", type=int, metavar="N", help="steps a log line")
    option("checkpoint_every", type=int, metavar="N", help="steps a checkpoint")
    option(
        "checkpoint_minutes",
        type=float,
        metavar="M",
        help="and a checkpoint whenever there was none for so long, which is the most that a kill loses; 0: never",
    )
    option("keep", type=int, metavar="N", help="newest checkpoints that stay")
    option("explosion", type=float, metavar="FACTOR", help="stop when the loss has grown so much; 0: never")
    option("wandb", metavar="PROJECT", help="also log to this project of Weights & Biases")


def _add_option(group: Any, defaults: dict[str, Any], field: str, flag: str = "", **options: Any) -> None:
    """An option for a field of the settings. If it is not given, neither is there anything of it in the namespace."""
    default = defaults.get(field)
    if default not in (None, (), False):
        words = default if isinstance(default, tuple) else [default]
        options["help"] += f" (default: {' '.join(map(str, words))})"
    flag = flag or "--" + field.rpartition(".")[2].replace("_", "-")
    group.add_argument(flag, dest=field, default=argparse.SUPPRESS, **options)


def _defaults() -> dict[str, Any]:
    """The settings' defaults, for the help: read from the source, as importing it takes seconds (it needs torch)."""
    source = find_spec("distill.settings")
    assert source is not None
    assert source.origin is not None
    found = {}
    for node in ast.parse(Path(source.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in _TABLES:
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    try:
                        found[_TABLES[node.name] + line.target.id] = ast.literal_eval(line.value or ast.Constant(None))
                    except ValueError:
                        continue  # made by a function
    return found


def run(args: argparse.Namespace) -> int:
    if args.recipe == "list":
        return _list()
    from distill.recipe import load_recipe, settings_from  # noqa: PLC0415
    from distill.training.launch import launch  # noqa: PLC0415 - `--help` stays fast

    start = partial(launch, launcher=args.launcher, processes=args.processes, address=args.ray_address)
    recipe = load_recipe(args.recipe) if args.recipe else {}
    if args.smoke:
        from demo.smoke import smoke  # noqa: PLC0415

        _say(smoke(recipe, _given(args), start))
        return 0
    settings = settings_from(recipe, **_given(args))
    if settings.prune and not settings.initial:
        raise UserError(
            "pruning begins with trained weights, and none are given",
            where="--prune",
            do="Give --initial: the teacher, or the model/ of the stage before",
        )
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
    given: dict[str, Any] = {}
    for name, value in vars(args).items():
        if name in {"run", "recipe", "smoke", "launcher", "processes", "ray_address"}:
            continue
        table, _, field = name.rpartition(".")
        place = given.setdefault(table, {}) if table else given
        place[field] = tuple(value) if isinstance(value, list) else value
    if "losses" in given:
        terms = [_loss(text) for text in given["losses"]]
        given["losses"] = dict(terms)
        if len(given["losses"]) < len(terms):
            raise UserError("a loss is given twice", where="--loss", do="Give each once")
    return given


def _loss(text: str) -> tuple[str, LossTerm]:
    from distill.settings import LossTerm  # noqa: PLC0415

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


def number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


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
