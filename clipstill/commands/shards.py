"""`clipstill shards`: make a dataset of tars, and prove one."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show, show_json

_SUMMARY = """\
Check a dataset byte by byte.

Sizes and hashes of every file, every tar member against the index, every image decoded, ledger rows and successes
against plan and tars, keys unique. Exit status 1 if anything is wrong; the last line then says which command mends it.
"""


_ADOPT = """\
Make a dataset of webdataset tars that you have, where they are.

Each tar is read once, at the speed of hashing it; no image is copied or decoded. Members of one name (up to its first
dot) are a sample: an image, a caption, perhaps a JSON object and a class number. A sample that cannot be used is
refused, with its reason, in NNNNN.parquet. The tars stay as they are: one that is written to later is refused.
"""


def add(commands: Subparsers) -> None:
    parser = commands.add_parser("shards", help="Work on shards: adopt, ls, cat, verify.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_adopt(actions)
    _add_looks(actions)
    verify = add_command(actions, "verify", _SUMMARY, "  clipstill shards verify data/cc3m\n")
    verify.add_argument("folder", metavar="FOLDER", help="what `clipstill ingest` wrote")
    verify.set_defaults(run=run)


def _add_adopt(actions: Subparsers) -> None:
    example = "  clipstill shards adopt 'wds/cc12m-train-{0000..2175}.tar' --out data/cc12m\n"
    parser = add_command(actions, "adopt", _ADOPT, example)
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="tars: paths or URLs, {000..123}, *, or folders")
    parser.add_argument("--out", required=True, metavar="DATASET", help="folder for the index; no image is copied")
    parser.add_argument("--name", help="of the dataset (default: the last part of --out)")
    parser.add_argument("--image", metavar="EXT", help="what images' names end with (default: jpg, jpeg, png or webp)")
    parser.add_argument(
        "--caption", metavar="EXT", help="what captions' names end with (default: txt, else the JSON's caption or text)"
    )
    parser.add_argument("--no-captions", action="store_true", help="take samples without a caption as well")
    parser.add_argument(
        "--keys-of-tars", action="store_true", help="begin keys with their tar's name, which must differ"
    )
    add_runner(parser, workers="one a core")
    parser.set_defaults(run=run_adopt)


def _add_looks(actions: Subparsers) -> None:
    ls = add_command(actions, "ls", "List a dataset's shards.", "  clipstill shards ls data/cc3m\n")
    ls.add_argument("dataset", metavar="DATASET", help="what `clipstill ingest` or `shards adopt` wrote")
    ls.set_defaults(run=run_ls)
    example = "  clipstill shards cat data/cc3m cc3m-000000017 --image 17.jpg\n"
    cat = add_command(actions, "cat", "Show one sample: where it lies, its caption and metadata, as JSON.", example)
    cat.add_argument("dataset", metavar="DATASET")
    cat.add_argument("key", metavar="KEY")
    cat.add_argument("--image", metavar="FILE", help="write the picture there, as it is stored")
    cat.set_defaults(run=run_cat)


def run_ls(args: argparse.Namespace) -> int:
    from shards import Dataset  # noqa: PLC0415
    from shards.look import shard_lines  # noqa: PLC0415

    dataset = Dataset.open(args.dataset)
    total = 0
    for line in shard_lines(dataset):
        show(f"{line.shard:05d}  {line.samples:>8,} samples  {line.bytes / 1e6:>10,.1f} MB  {line.tar}")
        total += line.bytes
    kind = "" if dataset.captioned else ", without captions"
    show(f"{dataset.name}: {len(dataset):,} samples in {len(dataset.shards):,} shards, {total / 1e6:,.1f} MB{kind}")
    return 0


def run_cat(args: argparse.Namespace) -> int:
    from shards import Dataset  # noqa: PLC0415
    from shards.errors import UserError  # noqa: PLC0415
    from shards.look import describe, find  # noqa: PLC0415

    shard, row = find(Dataset.open(args.dataset), args.key)
    if args.image is not None:
        try:
            Path(args.image).write_bytes(shard.image_bytes(row))
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", where=args.image, do="Check the path") from None
    show_json(asdict(describe(shard, row)))
    return 0


def run_adopt(args: argparse.Namespace) -> int:
    from shards.adopt import AdoptSettings, Extensions, adopt  # noqa: PLC0415 - `--help` stays fast

    usual = Extensions()
    extensions = Extensions(
        images=(args.image.lstrip(".").lower(),) if args.image else usual.images,
        captions=(args.caption.lstrip(".").lower(),) if args.caption else usual.captions,
    )
    settings = AdoptSettings(
        patterns=tuple(args.patterns),
        out=args.out,
        name=args.name,
        extensions=extensions,
        captioned=not args.no_captions,
        keys_of_tars=args.keys_of_tars,
    )
    found = adopt(settings, make_executor(args, workers=cores(), cpus=1))
    show(f"{found.rows} samples in {found.tars} tars: {found.rows - found.refused} adopted, {found.refused} refused")
    for reason, count in found.reasons.most_common():
        show(f"  {count:>8}  {reason}")
    if found.others:
        names = ", ".join(f"{count} {name}" for name, count in found.others.most_common())
        show(f"members that are no part of a sample: {names}")
    show(f"{args.out} is a dataset now: `clipstill shards verify` decodes every image, `clipstill cache build` is next")
    return 0


def run(args: argparse.Namespace) -> int:
    from shards import verify_dataset  # noqa: PLC0415 - `--help` stays fast

    report = verify_dataset(args.folder)
    for problem in report.problems:
        show(problem)
    verdict = f"{len(report.problems)} problems" if report.problems else "sound"
    size = f"{report.bytes / 1e6:.1f} MB"
    show(f"{verdict}: {report.shards} shards, {report.rows} rows, {report.samples} samples, {size}")
    if report.mend:
        show(f"to mend it: {report.mend}")
    return 1 if report.problems else 0
