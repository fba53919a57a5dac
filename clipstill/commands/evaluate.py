"""`clipstill evaluate`: how good models are, on the sets that people judge them by."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from clipstill.commands.common import Subparsers, add_command, called_there, show, show_json
from clipstill.options import add_options, given
from clipstill.parser import Parser

if TYPE_CHECKING:
    from evaluation.sets import EvaluationSet
    from evaluation.settings import EvaluateSettings
    from evaluation.suites.rows import Row

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
  clipstill evaluate runs/vit-s/model --suite datacomp-38 --root evalsets --out evaluated
"""


def add(commands: Subparsers) -> None:
    add_command(commands, "evaluate", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    from evaluation.settings import EvaluateSettings  # noqa: PLC0415

    add_options(parser, EvaluateSettings)
    parser.add_argument("--ray-address", metavar="ADDRESS", help="evaluate on this Ray cluster, as one task of it")


def run(args: argparse.Namespace) -> int:
    from clip_models.spec import refuse_absent  # noqa: PLC0415
    from evaluation.report import FILES, below_root  # noqa: PLC0415
    from evaluation.sets import open_sets  # noqa: PLC0415
    from evaluation.settings import EvaluateSettings  # noqa: PLC0415
    from evaluation.suites.files import read_rows  # noqa: PLC0415
    from evaluation.suites.table import part_note, refuse_larger, samples_of  # noqa: PLC0415
    from shards.places import refuse_other_things  # noqa: PLC0415
    from shards.settings import make  # noqa: PLC0415
    from shards.storage import Folder  # noqa: PLC0415

    settings = make(EvaluateSettings, given(args, EvaluateSettings))
    for spec in (*settings.models, *([settings.teacher] if settings.teacher else [])):
        refuse_absent(spec)
    settings.sets.class_file()
    if settings.out is not None:
        refuse_other_things(Folder(settings.out), "an evaluation", FILES)
    others = [row for path in settings.beside for row in read_rows(path)]
    on = list(settings.on)
    if settings.suite is not None and settings.root is not None:
        on += below_root(settings.suite, settings.root, on)
    opened = dict(zip(on, open_sets(on, settings.sets), strict=True))
    parts: list[str] = []
    for at, evaluated in opened.items():
        if settings.suite is not None:
            refuse_larger(evaluated.name, samples_of(evaluated), at)
            parts += filter(None, [part_note(evaluated.name, samples_of(evaluated))])
        for note in evaluated.notes:
            log.warning("%s: %s", at, note)
    if parts:
        log.warning("not the whole of %d published test splits: %s", len(parts), "; ".join(parts))
    if args.ray_address:
        results, rows = called_there(args.ray_address, _opened_there, settings, on)
    else:
        results, rows = _evaluated(settings, opened)
    if settings.suite is None and settings.out is None:
        show_json(results)
        return 0
    from evaluation.report import files_of, only_of, write  # noqa: PLC0415
    from evaluation.suites.suites import SUITES  # noqa: PLC0415

    if settings.suite is not None:
        rows, others = only_of(settings.suite, rows), [*SUITES[settings.suite].published(), *others]
    files = files_of(results, rows, settings.suite, others, parts)
    shown = files["results.json"] if settings.suite is None else files["table.md"]
    show(str(shown).rstrip())
    if settings.out is not None:
        write(settings.out, files)
        log.warning("written: %s", ", ".join(f"{settings.out}/{name}" for name in files))
    return 0


def _opened_there(settings: EvaluateSettings, on: list[str]) -> tuple[dict[str, Any], list[Row]]:
    """The same on another machine, from the paths."""
    from evaluation.sets import open_sets  # noqa: PLC0415

    return _evaluated(settings, dict(zip(on, open_sets(on, settings.sets), strict=True)))


def _evaluated(settings: EvaluateSettings, opened: dict[str, EvaluationSet]) -> tuple[dict[str, Any], list[Row]]:
    """The results of every model, rounded, and the rows that stand for them in tables, which are not."""
    import torch  # noqa: PLC0415 - slow: what is wrong with paths is said before

    from clip_models import load_model  # noqa: PLC0415
    from evaluation import TextCache, evaluate_all  # noqa: PLC0415
    from evaluation.suites.table import our_row  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {spec: load_model(spec, device) for spec in settings.models}
    teacher = load_model(settings.teacher, device) if settings.teacher else None
    how = {"batch_size": settings.batch_size, "precision": settings.precision, "device": device, "progress": True}
    results = evaluate_all(models, opened, teacher=teacher, cache=TextCache(), **how)
    rows = []
    if settings.suite is not None or settings.out is not None:
        from evaluation.suites.costs import costs  # noqa: PLC0415

        for spec, loaded in models.items():
            told = {opened[at].name: result for at, result in results["models"][spec].items()}
            rows.append(our_row(spec, told, costs(loaded)))
    return _rounded(results), rows


def _rounded(value: Any) -> Any:
    """To four decimals: of a million samples one is 0.0001 %."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value
