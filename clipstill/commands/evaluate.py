"""`clipstill evaluate`: how good a model is on a dataset of shards."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from clipstill.commands.common import Subparsers, add_command, called_there, show_json
from clipstill.parser import Parser
from shards.errors import UserError

if TYPE_CHECKING:
    from shards import Dataset

log = logging.getLogger(__name__)

_SUMMARY = """\
Evaluate a model by zero-shot classification and image-text retrieval.

Retrieval needs only the shards, with captions; samples whose captions are equal are hits for each other, and how many
there are is said (shared_captions). Zero-shot needs a JSON file {"classes": [...], "templates": ["a photo of a {}",
...]} and the metadata column (kept at ingest with --keep) that holds each sample's class. Numbers are percent, as JSON;
of several datasets each has its own, by its path.
"""

_EXAMPLE = """\
  clipstill evaluate runs/vit-s/model data/val --classes classes.json --label label
  clipstill evaluate ViT-B-32:laion2b_s34b_b79k data/val data/flickr30k
"""


def add(commands: Subparsers) -> None:
    add_command(commands, "evaluate", _SUMMARY, _EXAMPLE, run=run, fill=_options)


def _options(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ARCH:TAG, ARCH:/path/to/weights, or a folder")
    parser.add_argument("shards", metavar="SHARDS", nargs="+", help="what `clipstill ingest` wrote")
    parser.add_argument("--classes", metavar="FILE", help="JSON with classes and templates, for zero-shot")
    parser.add_argument("--label", metavar="COLUMN", help="the metadata column that names a sample's class")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="samples a forward")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="evaluate on this Ray cluster, as one task of it")


def run(args: argparse.Namespace) -> int:
    from clip_models.spec import refuse_absent  # noqa: PLC0415
    from evaluation.classes import read_classes  # noqa: PLC0415
    from shards import Dataset  # noqa: PLC0415

    classes, templates = read_classes(args.classes) if args.classes else (None, ())
    if args.batch_size < 1:
        raise UserError(f"a batch of {args.batch_size} samples", where="--batch-size", do="Give at least 1")
    refuse_absent(args.model)
    datasets = {shards: Dataset.open(shards) for shards in args.shards}
    from evaluation import SHARED, shared_note  # noqa: PLC0415 - slow: what is wrong with paths is said before

    options = {"classes": classes, "templates": templates, "label_field": args.label, "batch_size": args.batch_size}
    results = called_there(args.ray_address, _evaluated, args.model, datasets, options)
    for shards, result in results.items():
        retrieval = result["retrieval"]
        if retrieval is None:
            log.warning("%s has no captions, so there is no retrieval", shards)
        elif note := shared_note(retrieval[SHARED], result["samples"]):
            log.warning("%s: %s", shards, note)
    rounded = _rounded(results)
    show_json(rounded if len(rounded) > 1 else next(iter(rounded.values())))
    return 0


def _evaluated(spec: str, datasets: dict[str, Dataset], options: dict[str, Any]) -> dict[str, Any]:
    """The results of each dataset, on the device that is where this runs."""
    import torch  # noqa: PLC0415

    from clip_models import load_model  # noqa: PLC0415
    from evaluation import evaluate  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(spec, device)
    return {shards: evaluate(model, dataset, device=device, **options) for shards, dataset in datasets.items()}


def _rounded(value: Any) -> Any:
    """To four decimals: of a million samples one is 0.0001 %."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value
