"""`clipstill shards`: datasets of tars and pictures that are there already; look into one, and prove it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show, show_json
from clipstill.options import add_options, given
from clipstill.parser import Parser
from shards.errors import UserError
from shards.settings import make

if TYPE_CHECKING:
    from shards.selection import Selected

_SUMMARY = """\
Check a dataset byte by byte.

Sizes and hashes of every file, every tar member against the index, every image decoded, ledger rows and successes
against plan and tars, keys unique. Exit status 1 if anything is wrong; the last line then is the command that mends it.
"""


_ADOPT = """\
Make a dataset of webdataset tars that you have, where they are.

Each tar is read once, at the speed of hashing it; no image is copied or decoded. Members of one name (up to its first
dot) are a sample: an image, a caption, perhaps a JSON object and a class number. A sample that cannot be used is
refused, with its reason, in NNNNN.parquet. The tars stay as they are: one that is written to later is refused.
"""


_ADOPT_EXAMPLE = """\
  clipstill shards adopt 'wds/cc12m-train-{0000..2175}.tar' --out data/cc12m
  clipstill shards adopt s3://bucket/datacomp/shards/ --out data/datacomp
"""

_PACK = """\
Make shards of pictures that you have: files, or bytes in a column of Parquet.

INPUT is a list with a column of paths (OpenCLIP's CSV with title and filepath is one), Parquet with the images in a
column, or folders of pictures: the text beside NAME.jpg in NAME.txt is its caption, and where each picture is in a
folder below the given one, that is its class. Rows are checked, stored and accounted for as `clipstill ingest` does it;
a run that was stopped goes on.
"""

_PACK_EXAMPLE = """\
  clipstill shards pack train.csv --name mine --out data/mine
  clipstill shards pack 'photos/*.parquet' --column jpeg --no-captions --keep label --name photos --out data/photos
  clipstill shards pack pictures/ --name pictures --out data/pictures
"""

_LS = """\
List a dataset's shards: samples, bytes, and where the tar is.
"""

_CAT = """\
Show one sample, as JSON: where it lies, its caption and metadata.
"""

_CAT_EXAMPLE = """\
  clipstill shards cat data/cc3m cc3m-000000017 --image 17.jpg
"""

_STATS = """\
Say what is in datasets, in a few lines and on one page.

Counts and refused rows, sizes, formats, caption lengths, sources, licences, labels, images and captions that are there
more than once, and a contact sheet, with the keys of samples behind each number. Of several datasets also what they
have in common. Every shard is read once; no image is decoded but those on the page.
"""

_STATS_EXAMPLE = """\
  clipstill shards stats data/cc3m
  clipstill shards stats data/cc3m data/cc12m --out stats.html
"""


_FILTER = """\
Select samples of a dataset: what is kept, and for each other sample the reason.

A selection is a dataset that every command takes; no image is copied, and a teacher cache of the whole dataset is the
selection's too. What has been left out stands in its NNNNN.parquet. Rules are put in the order in which they are listed
here, each to what those before it have left.
"""

_FILTER_EXAMPLE = """\
  clipstill shards filter data/cc12m --where 'short_side >= 200' --where 'caption_words > 2' --out data/cc12m-clean
  clipstill shards filter data/cc12m --table data/cc12m-cache/TEACHER/scores.parquet --best clip_score=30% \\
      --unique near --unlike data/val --out data/cc12m-best
"""

_SPLIT = """\
Deal a dataset's samples to selections OUT/NAME, by a hash of their keys.

A sample's part depends on its key alone: a dataset that grows keeps its parts.
"""

_SPLIT_EXAMPLE = """\
  clipstill shards split data/photos --part train=0.9 --part val=0.1 --out data/photos-parts
"""

_MATERIALIZE = """\
Write the samples of one dataset or of several anew, in shards of one size.

A selection becomes tars of its own, shards are cut otherwise, datasets are merged. Images, captions and metadata are
copied byte for byte. A cache of the old shards is joined by key then: `clipstill distill --join skip`.
"""

_MATERIALIZE_EXAMPLE = """\
  clipstill shards materialize data/cc12m-best --shard-size 10000 --out data/cc12m-best-tars
  clipstill shards materialize data/cc3m data/photos --out data/both
"""

_UIDS = """\
Write a dataset's uids as DataComp's subsets are: a sorted .npy.
"""


def add(commands: Subparsers) -> None:
    names = "adopt, pack, ls, cat, stats, verify, filter, split, materialize, uids"
    parser = commands.add_parser("shards", help=f"Work on shards: {names}.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add_command(actions, "adopt", _ADOPT, _ADOPT_EXAMPLE, run=run_adopt, fill=_adopt_options)
    add_command(actions, "pack", _PACK, _PACK_EXAMPLE, run=run_pack, fill=_pack_options)
    add_command(actions, "ls", _LS, "  clipstill shards ls data/cc3m\n", run=run_ls, fill=_options)
    add_command(actions, "cat", _CAT, _CAT_EXAMPLE, run=run_cat, fill=_cat_options)
    add_command(actions, "stats", _STATS, _STATS_EXAMPLE, run=run_stats, fill=_stats_options)
    add_command(
        actions, "verify", _SUMMARY, "  clipstill shards verify data/cc3m data/cc12m\n", run=run, fill=_verify_options
    )

    add_command(actions, "filter", _FILTER, _FILTER_EXAMPLE, run=run_filter, fill=_filter_options)
    add_command(actions, "split", _SPLIT, _SPLIT_EXAMPLE, run=run_split, fill=_split_options)
    add_command(
        actions, "materialize", _MATERIALIZE, _MATERIALIZE_EXAMPLE, run=run_materialize, fill=_materialize_options
    )
    example = "  clipstill shards uids data/best --out best.npy\n"
    add_command(actions, "uids", _UIDS, example, run=run_uids, fill=_uids_options)


def _options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what `clipstill ingest`, `pack` or `adopt` wrote")


def _verify_options(parser: Parser) -> None:
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="what `clipstill ingest`, `pack` or `adopt` wrote")
    parser.add_argument(
        "--no-decode", dest="decode", action="store_false", help="hash and read everything, but decode no image"
    )
    add_runner(parser, workers="the machine's cores")


def _cat_options(parser: Parser) -> None:
    _options(parser)
    parser.add_argument("key", metavar="KEY")
    parser.add_argument("--image", metavar="FILE", help="write the picture there, as it is stored")


def _stats_options(parser: Parser) -> None:
    parser.add_argument(
        "folders", metavar="DATASET", nargs="+", help="what `clipstill ingest`, `pack` or `adopt` wrote"
    )
    default = "stats.html in the dataset; of several, in this folder"
    parser.add_argument("--out", metavar="PAGE", help=f"the page; one that is there is replaced (default: {default})")


def _adopt_options(parser: Parser) -> None:
    from shards.adopt.settings import AdoptSettings  # noqa: PLC0415 - each command imports its own settings alone

    add_options(parser, AdoptSettings)
    add_runner(parser, workers="the machine's cores")


def _pack_options(parser: Parser) -> None:
    from ingest.settings import IngestSettings, SourceSettings  # noqa: PLC0415

    add_options(parser, SourceSettings, without={"url_column", "subset"})
    of_column = "with the paths, or the images themselves (default: filepath, path, image and the like)"
    parser.add_argument("--column", metavar="NAME", help=of_column)
    parser.add_argument("--root", metavar="FOLDER", help="where relative paths begin (default: the list's own folder)")
    add_options(parser, IngestSettings, only={"out", "name", "shard_size", "image", "attempts"})
    add_runner(parser, workers="the machine's cores")


def _filter_options(parser: Parser) -> None:
    from shards.selection.settings import FilterSettings  # noqa: PLC0415

    add_options(parser, FilterSettings)
    add_runner(parser, workers="the machine's cores")


def _split_options(parser: Parser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help="a dataset")
    parser.add_argument(
        "--part", action="append", required=True, metavar="NAME=SHARE", help="a part and its share, 0 to 1; repeatable"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the parts go, each a folder of its name")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one deals otherwise")


def _materialize_options(parser: Parser) -> None:
    parser.add_argument("shards", metavar="SHARDS", nargs="+", help="datasets, in this order")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the shards go (a path or s3://...)")
    parser.add_argument("--name", default="", help="of the dataset (default: the last part of --out)")
    parser.add_argument("--shard-size", type=int, default=1000, metavar="N", help="samples a shard")
    parser.add_argument("--name-keys", action="store_true", help="begin keys with their dataset's name")
    add_runner(parser, workers="the machine's cores")


def _uids_options(parser: Parser) -> None:
    parser.add_argument("shards", metavar="SHARDS", help="a dataset whose metadata has uid")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .npy")


def run_filter(args: argparse.Namespace) -> int:
    from shards.selection.settings import FilterSettings  # noqa: PLC0415

    settings = make(FilterSettings, given(args, FilterSettings))
    from shards.selection import select, work_of_filter  # noqa: PLC0415 - a wrong option is told before

    _say_selected(select(settings, make_executor(args, work_of_filter(settings), workers=cores(), cpus=1)))
    return 0


def run_split(args: argparse.Namespace) -> int:
    parts: dict[str, float] = {}
    for text in args.part:
        name, _, share = text.partition("=")
        try:
            if not name or "/" in name or name in parts:
                raise ValueError(name)
            parts[name] = float(share)
        except ValueError:
            raise UserError(f"the part {text!r} is not understood", do="Write NAME=SHARE, each name once") from None
    from shards.selection import split  # noqa: PLC0415

    for selected in split(args.shards, parts, args.out, args.seed):
        _say_selected(selected)
    return 0


def _say_selected(selected: Selected) -> None:
    share = selected.samples / selected.rows
    show(f"{selected.url}: {selected.samples:,} of {selected.rows:,} samples ({share:.1%})")
    for reason, count in selected.reasons.items():
        show(f"  {count:>10,}  left out: {reason}")


def run_materialize(args: argparse.Namespace) -> int:
    from shards.selection.materialize import materialize, work_of_materializing  # noqa: PLC0415

    executor = make_executor(args, work_of_materializing(args.shards), workers=cores(), cpus=1)
    done = materialize(
        args.shards, args.out, executor, shard_size=args.shard_size, name=args.name, named=args.name_keys
    )
    show(f"{args.out}: {done.samples:,} samples in {done.finished + done.skipped:,} shards")
    return 0


def run_uids(args: argparse.Namespace) -> int:
    from shards import Dataset  # noqa: PLC0415
    from shards.selection.keys import write_uids  # noqa: PLC0415

    dataset = Dataset.open(args.shards)
    try:
        count = write_uids(dataset, Path(args.out))
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=args.out, do="Check the path") from None
    show(f"{args.out}: {count:,} uids")
    return 0


def run_adopt(args: argparse.Namespace) -> int:
    from shards.adopt.settings import AdoptSettings  # noqa: PLC0415

    settings = make(AdoptSettings, given(args, AdoptSettings))
    from shards.adopt import adopt, find_tars, work_of_tars  # noqa: PLC0415 - a wrong option is told before

    tars = find_tars(settings.patterns)
    found = adopt(settings, tars, make_executor(args, work_of_tars(tars), workers=cores(), cpus=1))
    refused = found.refused.total()
    show(f"{found.rows} samples in {found.tars} tars: {found.rows - refused} adopted, {refused} refused")
    for cause, count in found.refused.most_common():
        show(f"  {count:>8}  {cause}")
    if found.others:
        names = ", ".join(f"{count} {name}" for name, count in found.others.most_common())
        show(f"members that are no part of a sample: {names}")
    show(f"{settings.out} is a dataset now: `clipstill shards verify` decodes every image, `cache build` is next")
    return 0


def run_pack(args: argparse.Namespace) -> int:
    from ingest.settings import IngestSettings, SourceSettings  # noqa: PLC0415

    values = given(args, IngestSettings)
    source = given(args, SourceSettings) | {"files": True, "url_column": args.column, "root": args.root}
    from ingest.folders import are_folders_of_pictures, write_list  # noqa: PLC0415
    from shards import Folder  # noqa: PLC0415

    if are_folders_of_pictures(source["paths"]):
        listing, captioned, classed, others = write_list(source["paths"], Folder(values["out"]))
        if others:
            first = f"{', '.join(path.name for path in others[:3])}{', ...' if len(others) > 3 else ''}"
            show(f"left out: {len(others)} files whose names end as no picture's, nor as a picture's caption: {first}")
        source |= {"paths": (listing,), "captions": captioned and source.get("captions", True)}
        source |= {"keep": (*source.get("keep", ()), *(("class", "label") if classed else ()))}
    settings = make(IngestSettings, {**values, "source": make(SourceSettings, source), "engine": "files"})
    from clipstill.commands.ingest import run_settings  # noqa: PLC0415

    return run_settings(args, settings)


def run_ls(args: argparse.Namespace) -> int:
    from shards import Dataset  # noqa: PLC0415
    from shards.look import shard_lines  # noqa: PLC0415

    dataset = Dataset.open(args.folder)
    total = 0
    for line in shard_lines(dataset):
        show(f"{line.shard:05d}  {line.samples:>8,} samples  {line.bytes / 1e6:>10,.1f} MB  {line.tar}")
        total += line.bytes
    kind = "" if dataset.captioned else ", without captions"
    show(f"{dataset.name}: {len(dataset):,} samples in {len(dataset.shards):,} shards, {total / 1e6:,.1f} MB{kind}")
    return 0


def run_cat(args: argparse.Namespace) -> int:
    from shards import Dataset  # noqa: PLC0415
    from shards.look import describe, find  # noqa: PLC0415

    shard, row = find(Dataset.open(args.folder), args.key)
    if args.image is not None:
        try:
            Path(args.image).write_bytes(shard.image_bytes(row))
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror})", where=args.image, do="Check the path") from None
    show_json(asdict(describe(shard, row)))
    return 0


def run_stats(args: argparse.Namespace) -> int:
    from shards import Folder  # noqa: PLC0415
    from shards.errors import UserError  # noqa: PLC0415
    from shards.places import local_path, refuse_unwritable  # noqa: PLC0415

    if args.out is None:
        target, name = Folder(args.folders[0] if len(args.folders) == 1 else "."), "stats.html"
    else:
        page = local_path(args.out, "a page")
        if page.is_dir():
            raise UserError("this is a folder, and the page is a file", where=args.out, do="Give a name for the page")
        target, name = Folder(page.parent), page.name
    if target.is_local:
        refuse_unwritable(target.path)
    from stats import figures_of, lines_of, page_of  # noqa: PLC0415

    figures = figures_of(args.folders)
    target.publish(name, page_of(figures))
    for line in lines_of(figures):
        show(line)
    show(f"the page: {target.url.rstrip('/')}/{name}")
    return 0


def run(args: argparse.Namespace) -> int:
    from shards.verify import verify_dataset, work_of_verifying  # noqa: PLC0415 - `--help` stays fast

    failed = False
    # Of all of them first whether they are there.
    works = [work_of_verifying(folder, decode=args.decode) for folder in args.folders]
    for folder, work in zip(args.folders, works, strict=True):
        executor = make_executor(args, work, workers=cores(), cpus=1)
        report = verify_dataset(folder, executor, decode=args.decode)
        for problem in report.problems:
            show(problem)
        verdict = f"{len(report.problems)} problems" if report.problems else "sound"
        of = f"{folder}: " if len(args.folders) > 1 else ""
        size = f"{report.bytes / 1e6:.1f} MB"
        show(f"{of}{verdict}: {report.shards} shards, {report.rows} rows, {report.samples} samples, {size}")
        if report.captionless:
            show(f"{report.captionless} samples have an empty caption")
        if report.mend:
            show(f"to mend it: {report.mend}")
        failed = failed or bool(report.problems)
    return 1 if failed else 0
