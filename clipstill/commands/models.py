"""`clipstill models`: what students and teachers there are, how large, how fast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipstill.commands.common import Subparsers, add_command, show
from clipstill.parser import Parser
from shards.errors import UserError

if TYPE_CHECKING:
    from clip_models.published import Published
    from clip_models.sizes import Size

_LIST = """\
List the published students and teachers, what they cost as built here, and beside it what was published.

Parameters in millions: of the image tower, of the text tower without its token embedding, of all. Multiply-accumulates
in 10^9, of an image and a text together. Zero-shot top-1 on ImageNet-1k in percent after the published training. With
names (of open_clip's architectures too), folders or configuration files: of these.
"""

_LIST_EXAMPLE = """\
  clipstill models
  clipstill models ViT-B-16 TinyCLIP-ViT-8M-16-Text-3M runs/vit-s/model
"""

_BENCH = """\
Measure the throughput of models on the device that is here, by the protocol of the published figures.

Random weights where only a name is given. No gradients, batches of 32, for each tower 10 to warm up and 50 timed ones,
each waited for; under autocast to float16 on a GPU, in float32 on a CPU, where large models take minutes. Pairs a
second are 1 / (1 / images a second + 1 / texts a second).
"""

_BENCH_EXAMPLE = """\
  clipstill models bench TinyCLIP-ViT-8M-16-Text-3M ViT-B-32 runs/vit-s/model
"""

_JOIN = """\
Make one model of a text tower that was trained beside cached images and of the image tower that these came of.

Such a text tower is what `distill --image-tower cache` makes. The model is a folder that every command takes, and
open_clip too.
"""

_JOIN_EXAMPLE = """\
  clipstill models join runs/lit/model --image-tower ViT-B-16:laion2b_s34b_b88k --out runs/lit/joined
"""

_MODEL = "a name, timm/NAME, a .json configuration, or what `clipstill evaluate` takes as MODEL"


def add(commands: Subparsers) -> None:
    add_command(commands, "models", _LIST, _LIST_EXAMPLE, run=run, fill=partial(_options, nargs="*"))
    add_command(commands, "models bench", _BENCH, _BENCH_EXAMPLE, run=run_bench, fill=partial(_options, nargs="+"))
    add_command(commands, "models join", _JOIN, _JOIN_EXAMPLE, run=run_join, fill=_join_options)


def _join_options(parser: Parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the text tower's folder")
    parser.add_argument("--image-tower", required=True, metavar="TEACHER", help="as `clipstill evaluate` takes a MODEL")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the model goes")


def run_join(args: argparse.Namespace) -> int:
    from clip_models.spec import refuse_absent  # noqa: PLC0415

    for spec in (args.model, args.image_tower):
        refuse_absent(spec)
    if Path(args.out).exists() and any(Path(args.out).iterdir()):
        raise UserError("there are other things here", where=args.out, do="Give an empty folder, or a new one")
    from clip_models import join_towers, load_model, save_model  # noqa: PLC0415 - brings torch

    model, config = join_towers(load_model(args.model), load_model(args.image_tower))
    save_model(model, config, args.out)
    show(f"images by {args.image_tower}, texts by {args.model}: {args.out}")
    return 0


def _options(parser: Parser, nargs: str) -> None:
    parser.add_argument("models", nargs=nargs, metavar="MODEL", help=_MODEL)


def run(args: argparse.Namespace) -> int:
    from clip_models.published import PUBLISHED  # noqa: PLC0415

    heads = ["", "image", "text", "all", "MACs", "published: image", "text", "MACs", "IN-1k", "data", "from"]
    # Of what pruning finds there are no models, but there is what was published.
    _refuse_unknown([name for name in args.models if _published(name) is None])
    lines, more = [], []
    for name in args.models or [row.name for row in PUBLISHED]:
        row = _published(name)
        if row is not None and row.role == "pruned":
            ours = ["made by pruning", "", "", ""]
        else:
            size = _size(name)
            text = "-" if size.text is None else f"{size.text / 1e6:.2f}"
            ours = [f"{size.image / 1e6:.2f}", text, f"{size.total / 1e6:.2f}", f"{size.macs / 1e9:.2f}"]
        shown, told = name, [""] * 6
        if row:
            source = f"{row.source} (teacher)" if row.role == "teacher" else row.source
            shown, told = row.name, [row.image, row.text, row.macs, row.in1k, row.data, source]
        lines.append([shown, *ours, *told])
        more += [[f"  {shown}", row.also]] if row and row.also else []
    _show_table([heads, *lines], words={0, 9, 10})
    if more:
        show("\nalso published, zero-shot top-1 or top-1/top-5 in percent")
        _show_table(more, words={0, 1})
    return 0


def run_bench(args: argparse.Namespace) -> int:
    _refuse_unknown(args.models)
    import torch  # noqa: PLC0415

    from clip_models.measure import throughput  # noqa: PLC0415

    for name in args.models:
        # What is wrong with one is said before others are measured for minutes.
        _size(name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    what = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    show(f"on {what}, {'float16 autocast' if device == 'cuda' else 'float32'}, torch {torch.__version__}")
    width = max(map(len, args.models))
    show(f"{'':<{width}}  {'images/s':>10}  {'texts/s':>10}  {'pairs/s':>10}  published, on a GPU")
    for name in args.models:
        rate = throughput(_open(name, device))
        texts = "-" if rate.texts is None else f"{rate.texts:,.0f}"
        row = _published(name)
        told = row.rate if row else ""
        line = f"{name:<{width}}  {rate.images:>10,.0f}  {texts:>10}  {rate.pairs:>10,.0f}  {told:>19}"
        show(line.rstrip())
    return 0


def _refuse_unknown(names: Sequence[str]) -> None:
    """Raise `UserError` for a path where no model is, or a name of none, before torch is imported."""
    from clip_models.spec import refuse_absent, refuse_no_student  # noqa: PLC0415

    for name in names:
        (refuse_absent if _has_weights(name) else refuse_no_student)(name)


def _has_weights(name: str) -> bool:
    return ":" in name or Path(name).is_dir()


def _published(name: str) -> Published | None:
    """What was published about a name; a folder that is called alike is a model of its own."""
    from clip_models.published import PUBLISHED  # noqa: PLC0415

    rows = (row for row in PUBLISHED if row.name == name.replace("/", "-"))
    return None if Path(name).is_dir() else next(rows, None)


def _size(name: str) -> Size:
    """Raises `UserError` if there is no such model, or if it cannot be run."""
    from clip_models.sizes import known_sizes  # noqa: PLC0415

    known = known_sizes().get(name.replace("/", "-"))
    if known is not None and not Path(name).is_dir():
        return known
    from clip_models.measure import size_of  # noqa: PLC0415 - brings torch

    model = _open(name, "meta")
    try:
        return size_of(model)
    except Exception as error:  # whatever the modules of open_clip, timm and transformers object to
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"it cannot be run: {reason}", where=name, do="Check the sizes in its configuration") from error


def _open(name: str, device: str) -> Any:
    """A model in evaluation mode; what has weights is loaded with them, onto a real device."""
    from clip_models import load_model  # noqa: PLC0415
    from clip_models.measure import made_by_name  # noqa: PLC0415

    if _has_weights(name):
        return load_model(name, "cpu" if device == "meta" else device).model
    return made_by_name(name, device)


def _show_table(lines: Sequence[Sequence[str]], words: set[int]) -> None:
    """Columns aligned: those in `words` to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = enumerate(zip(line, widths, strict=True))
        show(
            "  ".join(f"{cell:<{width}}" if at in words else f"{cell:>{width}}" for at, (cell, width) in cells).rstrip()
        )
