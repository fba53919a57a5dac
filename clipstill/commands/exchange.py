"""`clipstill cache import|export`: embeddings in the formats of others."""

from __future__ import annotations

import argparse
from glob import glob, has_magic

from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show
from clipstill.parser import Parser
from shards.errors import UserError

_IMPORT = """\
Make a cache of embeddings that somebody else published; no teacher runs.

datacompdr: Apple's tars (npz or pth.gz), for images fetched with `clipstill ingest --format datacomp`; their crops and
augmentations are replayed, their synthetic captions kept. clip-retrieval: the folder of `clip-retrieval inference`.
Samples are matched by key, or by any column of both; train with --join skip if some of yours are not there. What is
said of the teacher is checked where that takes no weights: columns, image size, squashing.
"""

_EXPORT = """\
Write a cache as DataCompDR's tars, or as clip-retrieval's folder.
"""


def add(actions: Subparsers) -> None:
    add_command(
        actions,
        "import",
        _IMPORT,
        "  clipstill cache import data/dc12m --format datacompdr 'dr/*.tar' --out data/dc12m-cache\n"
        "  clipstill cache import data/cc3m --format clip-retrieval embeddings --teacher ViT-B-32:openai "
        "--image-size 224 --key-column url --out data/cc3m-cache\n",
        run=run_import,
        fill=_import_options,
    )
    example = "  clipstill cache export data/cc3m --cache data/cc3m-cache --format npz --out dr\n"
    add_command(actions, "export", _EXPORT, example, run=run_export, fill=_export_options)


def _import_options(parser: Parser) -> None:
    from teacher_cache.dtypes import DTYPES  # noqa: PLC0415

    parser.add_argument("shards", metavar="SHARDS", help="the dataset that has the images")
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="tars (globs are fine), or clip-retrieval's folder")
    parser.add_argument("--format", required=True, choices=["datacompdr", "clip-retrieval"])
    parser.add_argument("--out", required=True, metavar="CACHE", help="where the cache goes (a path or s3://...)")
    parser.add_argument(
        "--key-column",
        metavar="FIELD",
        help="the field of your samples' JSON by which they are joined (datacompdr: uid; clip-retrieval: your keys)",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="clip-retrieval: the column of their metadata that says the same (--key-column's if they have it, else "
        "image_path)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="NAME:WIDTH:SCALE",
        help="datacompdr: a teacher's name, columns and logit scale, in order (default: the two of 768 at 100)",
    )
    parser.add_argument(
        "--tag", default="", metavar="TAG", help="datacompdr: of image_emb{TAG}, where there are several ensembles'"
    )
    one = parser.add_argument_group("clip-retrieval, whose files do not say it")
    one.add_argument("--teacher", metavar="SPEC", help="which model it was, such as ViT-B-32:openai")
    one.add_argument("--logit-scale", type=float, default=100.0, metavar="T", help="the model's")
    one.add_argument("--image-size", type=int, metavar="PIXELS", help="what the model sees, such as 224")
    one.add_argument("--squash", action="store_true", help="its preprocessing squashes instead of cropping (SigLIP)")
    add_runner(parser, workers="one a core")


def _export_options(parser: Parser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help="the dataset")
    parser.add_argument("--cache", required=True, metavar="CACHE", help="what `clipstill cache build` wrote")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--format", required=True, choices=["npz", "pth.gz", "clip-retrieval"], help="npz, pth.gz: DataCompDR's tars"
    )
    parser.add_argument(
        "--teacher-name",
        action="append",
        default=[],
        metavar="NAME",
        help="which teachers, side by side in this order (default: all); clip-retrieval takes one",
    )
    parser.add_argument("--synthetic", metavar="SET", default="syn", help="the caption set that goes out as synthetic")
    add_runner(parser, workers="one a core")


def run_import(args: argparse.Namespace) -> int:
    from shards import Dataset  # noqa: PLC0415

    Dataset.open(args.shards)
    from teacher_cache.exchange import import_clip_retrieval, import_datacompdr, work_of_exchange  # noqa: PLC0415

    executor = make_executor(args, work_of_exchange(args.shards), workers=cores(), cpus=1)
    if args.format == "datacompdr":
        report = import_datacompdr(
            _paths(args.source),
            args.shards,
            args.out,
            executor,
            key_column=args.key_column or "uid",
            tag=args.tag,
            **({"teachers": [_part(text) for text in args.part]} if args.part else {}),
            dtype=args.dtype,
        )
    else:
        if len(args.source) != 1 or args.teacher is None or args.image_size is None:
            raise UserError(
                "clip-retrieval's files do not say which model made them",
                where="--format clip-retrieval",
                do="Give one folder, --teacher and --image-size",
            )
        report = import_clip_retrieval(
            args.source[0],
            args.shards,
            args.out,
            executor,
            teacher=args.teacher,
            logit_scale=args.logit_scale,
            image_size=args.image_size,
            kind="squash" if args.squash else "centre",
            column=args.column,
            key_column=args.key_column,
            dtype=args.dtype,
        )
    show(
        f"{report.samples} samples have embeddings now ({report.bytes / 1e6:.1f} MB), in {' and '.join(report.folders)}"
    )
    if report.uneven:
        show(f"{report.uneven} of them had more or fewer views or captions than most: cut, or repeated in turn")
    left_out = "".join(f", {count} left out as {cause}" for cause, count in sorted(report.left_out.items()))
    show(f"{report.absent} of yours are not there{left_out}; {report.unused} rows there are not yours")
    return 0


def run_export(args: argparse.Namespace) -> int:
    from shards import Dataset  # noqa: PLC0415

    Dataset.open(args.shards)
    from teacher_cache.exchange import export_clip_retrieval, export_datacompdr, work_of_exchange  # noqa: PLC0415

    if args.format == "clip-retrieval":
        if len(args.teacher_name) > 1:
            raise UserError(
                f"{len(args.teacher_name)} teachers for a format of one", where="--teacher-name", do="Choose one"
            )
        written = export_clip_retrieval(args.cache, args.shards, args.out, teacher=next(iter(args.teacher_name), None))
        show(f"{written} samples, in {args.out}")
        return 0
    report = export_datacompdr(
        args.cache,
        args.shards,
        args.out,
        make_executor(args, work_of_exchange(args.shards), workers=cores(), cpus=1),
        format=args.format,
        teachers=args.teacher_name,
        captions=args.synthetic,
    )
    size = f"{report.bytes / 1e6:.1f} MB"
    show(f"{report.samples} samples ({size}), in {report.folder}; {report.missing} have no embeddings")
    return 0


def _part(text: str) -> tuple[str, int, float]:
    name, *numbers = text.rsplit(":", 2)
    try:
        width, scale = int(numbers[0]), float(numbers[1])
    except (ValueError, IndexError):
        raise UserError(
            "not a teacher's name, columns and scale", where=f"--part {text}", do="Write NAME:WIDTH:SCALE"
        ) from None
    return name, width, scale


def _paths(sources: list[str]) -> list[str]:
    """Globs that the shell has left alone, opened up."""
    found: list[str] = []
    for source in sources:
        paths = sorted(glob(source)) if has_magic(source) else [source]  # noqa: PTH207 - the user's, perhaps absolute
        if not paths:
            raise UserError("no file fits this", where=source, do="Check the path")
        found += paths
    return found
