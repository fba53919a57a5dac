"""`clipstill ingest`: metadata to shards."""

from __future__ import annotations

import argparse

from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show

_SUMMARY = """\
Download a list of image URLs into webdataset shards.

Every input row ends in a tar or, with its cause, in the Parquet ledger beside it. Shard boundaries and keys are fixed
by the input alone. Stop it at any moment and start the same command again: it goes on, and the result is the same.
"""

_EXAMPLE = """\
  clipstill ingest Train_GCC-training.tsv --format cc3m --name cc3m --out data/cc3m
  clipstill ingest 'laion/*.parquet' --url-column URL --caption-column TEXT --keep LICENSE --name laion --out s3://b/laion
"""


def add(commands: Subparsers) -> None:
    parser = add_command(commands, "ingest", _SUMMARY, _EXAMPLE)
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="metadata files; globs and URLs are fine")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the shards go (a path or s3://...)")
    parser.add_argument("--name", required=True, help="the dataset's name; begins every sample's key")
    source = parser.add_argument_group("the input")
    source.add_argument(
        "--format",
        choices=["auto", "cc3m", "csv", "tsv", "parquet"],
        default="auto",
        help="cc3m: headerless TSV, caption first; auto: by the file's ending",
    )
    source.add_argument("--url-column", default="url", metavar="NAME", help="the column with the URLs")
    source.add_argument("--caption-column", default="caption", metavar="NAME", help="the column with the captions")
    source.add_argument("--keep", default="", metavar="A,B", help="further columns to keep in ledger and JSON")
    source.add_argument("--shard-size", type=int, default=1000, metavar="ROWS", help="input rows a shard")
    image = parser.add_argument_group("the images")
    image.add_argument("--image-size", type=int, default=256, metavar="PX", help="side to resize to")
    image.add_argument(
        "--resize-mode",
        default="keep_ratio",
        choices=["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"],
        help="keep_ratio: the shorter side becomes PX; images are never enlarged",
    )
    image.add_argument("--quality", type=int, default=95, help="JPEG quality")
    image.add_argument("--max-bytes", type=int, default=50_000_000, metavar="N", help="refuse larger files")
    image.add_argument("--max-pixels", type=int, default=100_000_000, metavar="N", help="refuse larger images")
    network = parser.add_argument_group("the network")
    network.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds a network step may take")
    network.add_argument("--retries", type=int, default=1, metavar="N", help="further tries for a URL")
    network.add_argument("--threads", type=int, default=32, metavar="N", help="download threads a worker")
    add_runner(parser, workers="the machine's cores")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ingest import ImageSettings, IngestSettings, SourceSettings, ingest  # noqa: PLC0415 - `--help` stays fast

    settings = IngestSettings(
        source=SourceSettings(
            paths=tuple(args.inputs),
            format=args.format,
            url_column=args.url_column,
            caption_column=args.caption_column,
            keep=tuple(name for name in args.keep.split(",") if name),
        ),
        out=args.out,
        name=args.name,
        shard_size=args.shard_size,
        image=ImageSettings(
            size=args.image_size,
            resize_mode=args.resize_mode,
            quality=args.quality,
            max_bytes=args.max_bytes,
            max_pixels=args.max_pixels,
        ),
        timeout=args.timeout,
        retries=args.retries,
        threads=args.threads,
    )
    report = ingest(settings, make_executor(args, workers=cores(), cpus=1))
    show(f"{report.rows} rows: {report.samples} samples, {sum(report.failed.values())} failed")
    for cause, count in sorted(report.failed.items(), key=lambda item: -item[1]):
        show(f"  {count:>8}  {cause}")
    done = report.summary
    show(f"{done.finished} shards made, {done.skipped} were there already, in {args.out}")
    return 0
