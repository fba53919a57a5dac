"""`clipstill evaluate`: how good models are, on the sets that people judge them by."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from clipstill.commands.common import Subparsers, add_command, show_json
from clipstill.options import add_options, given
from clipstill.parser import Parser

log = logging.getLogger(__name__)

_SUMMARY = """\
Evaluate models by zero-shot classification, retrieval and whatever a set asks.

A set is a dataset of shards (adopted ones and selections too), a wds_* folder as CLIP_benchmark and DataComp have them,
a folder of images for each class (ImageNet's among them), CIFAR's files, ObjectNet, Parquet with images and captions,
SugarCrepe or Winoground: what it is shows by its files. Nothing is downloaded that is not asked for by its address. A
dataset is classified by --classes, a JSON file {"classes": [...], "templates": ["a photo of a {}", ...]}, and --label.
Numbers are percent, as JSON by model and set, with 95 % intervals; several models are averaged as seeds of one, and
compared with the first by a paired bootstrap.
"""

_EXAMPLE = """\
  clipstill evaluate runs/vit-s/model --on data/val --classes classes.json --label label
  clipstill evaluate ViT-B-32:laion2b_s34b_b79k --on evalsets/wds_cifar10_test --on imagenet/val
"""


def add(commands: Subparsers) -> None:
    add_command(commands, "evaluate", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    from evaluation.settings import EvaluateSettings  # noqa: PLC0415

    add_options(parser, EvaluateSettings)


def run(args: argparse.Namespace) -> int:
    from clip_models.spec import refuse_absent  # noqa: PLC0415
    from evaluation.sets import open_sets  # noqa: PLC0415
    from evaluation.settings import EvaluateSettings  # noqa: PLC0415
    from shards.settings import make  # noqa: PLC0415

    settings = make(EvaluateSettings, given(args, EvaluateSettings))
    for spec in (*settings.models, *([settings.teacher] if settings.teacher else [])):
        refuse_absent(spec)
    settings.sets.class_file()
    opened = dict(zip(settings.on, open_sets(settings.on, settings.sets), strict=True))
    for at, evaluated in opened.items():
        for note in evaluated.notes:
            log.warning("%s: %s", at, note)
    import torch  # noqa: PLC0415 - slow: what is wrong with paths is said before

    from clip_models import load_model  # noqa: PLC0415
    from evaluation import TextCache, evaluate_all  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {spec: load_model(spec, device) for spec in settings.models}
    teacher = load_model(settings.teacher, device) if settings.teacher else None
    results = evaluate_all(
        models,
        opened,
        teacher=teacher,
        cache=TextCache(),
        batch_size=settings.batch_size,
        precision=settings.precision,
        device=device,
    )
    show_json(_rounded(results))
    return 0


def _rounded(value: Any) -> Any:
    """To four decimals: of a million samples one is 0.0001 %."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value
