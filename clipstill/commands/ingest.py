"""`clipstill ingest`, `ingest retry`, `ingest report`: metadata to shards, again for what may pass, and a page."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show

if TYPE_CHECKING:
    from ingest import IngestReport, NetworkSettings

_SUMMARY = """\
Download a list of image URLs into webdataset shards.

Every input row ends in a tar or, with its cause, in the Parquet ledger beside it. Shard boundaries and keys are fixed
by the input alone. Stop it at any moment and start the same command again: it goes on, and the result is the same. A
list that has grown at its end since adds its new rows.
`clipstill ingest retry OUT` fetches again what failed but may pass; `clipstill ingest report OUT` makes a page of it.
"""

_EXAMPLE = """\
  clipstill ingest Train_GCC-training.tsv --format cc3m --name cc3m --out data/cc3m
  clipstill ingest laion400m-meta/ --format laion --where 'NSFW == UNLIKELY' --where 'similarity >= 0.32' \\
      --name laion --out s3://bucket/laion
  clipstill ingest 'yfcc100m_dataset*.bz2' --format yfcc15m --subset yfcc100m_subset_data.tsv.bz2 --name yfcc --out yfcc
  clipstill ingest list.csv --url-column link --caption-column alt --keep license --name mine --out data/mine
"""

_RETRY = """\
Fetch again the rows of a dataset that failed but may pass: time-outs, dead servers, 5xx, 429.

They go into new shards after the others, under their own keys; nothing that is there is touched. Goes on, round after
round, until no such row is left or a round brings nothing. With --allow-address, rows that were refused for their
address come along.
"""

_REPORT = """\
Write OUT/report.html: yield, failures by cause and by host, sizes, throughput over time, a contact sheet.
"""


_QUALITY = {"jpg": 95, "png": 3, "webp": 95}


def add(commands: Subparsers) -> None:
    parser = add_command(commands, "ingest", _SUMMARY, _EXAMPLE)
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="metadata files; folders, globs and URLs are fine")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the shards go (a path or s3://...)")
    parser.add_argument("--name", required=True, help="the dataset's name; begins every sample's key")
    _add_source(parser)
    _add_image(parser)
    _add_network(parser)
    parser.add_argument(
        "--engine", choices=["clipstill", "img2dataset"], default="clipstill", help="what fetches, decodes and resizes"
    )
    add_runner(parser, workers="the machine's cores")
    parser.set_defaults(run=run)

    again = add_command(commands, "ingest retry", _RETRY, "  clipstill ingest retry data/cc3m\n")
    again.add_argument("out", metavar="OUT", help="a dataset that `clipstill ingest` wrote")
    _add_network(again)
    add_runner(again, workers="the machine's cores")
    again.set_defaults(run=run_retry)

    page = add_command(commands, "ingest report", _REPORT, "  clipstill ingest report data/cc3m\n")
    page.add_argument("out", metavar="OUT", help="a dataset that `clipstill ingest` wrote, finished or not")
    page.set_defaults(run=run_report)


def _add_source(parser: argparse.ArgumentParser) -> None:
    from ingest.settings import FORMATS  # noqa: PLC0415 - `--help` of other commands stays fast

    source = parser.add_argument_group("the input")
    source.add_argument(
        "--format", choices=FORMATS, default="auto", help="a published list's, or a kind of file; auto: by the ending"
    )
    source.add_argument("--url-column", metavar="NAME", help="the column with the URLs (default: the format's, or url)")
    source.add_argument(
        "--caption-column", metavar="NAME", help="the column with the captions (default: the format's, or caption)"
    )
    source.add_argument("--no-captions", action="store_true", help="take images alone: no column holds captions")
    source.add_argument(
        "--columns", default="", metavar="A,B", help="what the columns of a CSV or TSV are called that has no header"
    )
    source.add_argument("--quoted", action="store_true", help="the fields of a TSV may be quoted, as those of a CSV")
    source.add_argument(
        "--encoding",
        default="utf-8",
        metavar="NAME",
        help="of the text in the list, as Python calls it: latin-1, cp1252",
    )
    source.add_argument("--keep", default="", metavar="A,B", help="further columns to keep in ledger and JSON")
    source.add_argument("--hash-column", metavar="NAME", help="the column with the hash that each file must have")
    source.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="fetch only rows that meet it, as in 'similarity >= 0.3'; may be given more than once",
    )
    source.add_argument("--subset", metavar="FILE", help="yfcc15m: the list of the photos to take")
    source.add_argument("--shard-size", type=int, default=1000, metavar="ROWS", help="rows to fetch a shard")


def _add_image(parser: argparse.ArgumentParser) -> None:
    image = parser.add_argument_group("the images")
    image.add_argument("--image-size", type=int, default=256, metavar="PX", help="side to resize to")
    image.add_argument(
        "--resize-mode",
        default="keep_ratio",
        choices=["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"],
        help="keep_ratio: the shorter side becomes PX",
    )
    image.add_argument("--enlarge", action="store_true", help="resize smaller images too")
    image.add_argument("--image-format", choices=["jpg", "png", "webp"], default="jpg", help="how they are stored")
    image.add_argument(
        "--quality", type=int, help="of JPEG and WebP, 1 to 100 (default: 95); PNG's compression, 0 to 9 (default: 3)"
    )
    image.add_argument("--exact", action="store_true", help="decode every pixel and average, as img2dataset does")
    image.add_argument("--skip-reencode", action="store_true", help="store what needs no change as it came")
    image.add_argument("--min-size", type=int, default=0, metavar="PX", help="leave out images with a shorter side")
    image.add_argument("--max-area", type=int, metavar="N", help="leave out images of more pixels")
    image.add_argument("--max-aspect-ratio", type=float, metavar="R", help="leave out images that are longer")
    image.add_argument("--max-bytes", type=int, default=50_000_000, metavar="N", help="refuse larger files")
    image.add_argument("--max-pixels", type=int, default=100_000_000, metavar="N", help="refuse larger images")
    image.add_argument(
        "--hash", choices=["md5", "sha256", "sha512"], default="sha256", help="of each file as it came, in the ledger"
    )
    image.add_argument(
        "--blur-faces",
        metavar="COLUMN",
        help="blur what is in the boxes of this column (DataComp's face_bboxes), and keep it",
    )
    image.add_argument("--exif", choices=["on", "off"], default="on", help="keep it, in ledger and JSON")


def _add_network(parser: argparse.ArgumentParser) -> None:
    network = parser.add_argument_group("the network")
    network.add_argument("--deadline", type=float, default=30.0, metavar="S", help="seconds for one URL, all in all")
    network.add_argument("--connect-timeout", type=float, default=10.0, metavar="S", help="seconds for a connection")
    network.add_argument("--retries", type=int, default=2, metavar="N", help="further tries after what may pass")
    network.add_argument("--connections", type=int, default=128, metavar="N", help="open at once in a worker")
    network.add_argument("--per-host", type=int, default=32, metavar="N", help="of them, to one host")
    network.add_argument(
        "--per-host-rate",
        type=float,
        default=100.0,
        metavar="N",
        help="requests a second to one host, of each worker; 0: as fast as it answers",
    )
    network.add_argument("--max-redirects", type=int, default=10, metavar="N", help="followed for one URL")
    network.add_argument(
        "--proxy",
        metavar="URL",
        help="connect through it (http, https, socks4, socks5); which addresses it fetches from, nobody here checks",
    )
    network.add_argument(
        "--allow-address",
        action="append",
        default=[],
        metavar="NET",
        help="fetch from this address or network although it is not public; may be given more than once",
    )
    network.add_argument(
        "--opt-out",
        default="noai,noimageai,noindex,noimageindex,none",
        metavar="A,B",
        help="leave out images whose X-Robots-Tag says one of these",
    )
    network.add_argument("--ignore-opt-outs", action="store_true", help="take images whatever their X-Robots-Tag says")
    network.add_argument("--robots-txt", action="store_true", help="ask each host's robots.txt first")
    network.add_argument("--user-agent", metavar="TEXT", help="what to say who we are")
    network.add_argument("--ca-file", metavar="PEM", help="certificates to trust instead of the usual ones")
    network.add_argument("--attempts", type=int, default=3, metavar="N", help="tries a shard until it counts as failed")
    network.add_argument("--no-stop", action="store_true", help="go on even if nothing comes through any more")


def _network(args: argparse.Namespace) -> NetworkSettings:
    from ingest import NetworkSettings  # noqa: PLC0415
    from ingest.settings import USER_AGENT  # noqa: PLC0415

    return NetworkSettings(
        deadline=args.deadline,
        connect_timeout=args.connect_timeout,
        retries=args.retries,
        connections=args.connections,
        per_host=args.per_host,
        allow_addresses=tuple(args.allow_address),
        opt_outs=() if args.ignore_opt_outs else tuple(args.opt_out.lower().split(",")),
        robots_txt=args.robots_txt,
        per_host_rate=args.per_host_rate,
        max_redirects=args.max_redirects,
        proxy=args.proxy,
        user_agent=args.user_agent or USER_AGENT,
        ca_file=args.ca_file,
    )


def run(args: argparse.Namespace) -> int:
    from ingest import ImageSettings, IngestSettings, SourceSettings, ingest  # noqa: PLC0415 - `--help` stays fast
    from ingest.run import refuse_nothing, work_of_list  # noqa: PLC0415

    settings = IngestSettings(
        source=SourceSettings(
            paths=tuple(args.inputs),
            format=args.format,
            url_column=args.url_column,
            caption_column=args.caption_column,
            keep=tuple(dict.fromkeys(name for name in [*args.keep.split(","), args.blur_faces] if name)),
            hash_column=args.hash_column,
            where=tuple(args.where),
            subset=args.subset,
            columns=tuple(args.columns.split(",")) if args.columns else (),
            quoted=args.quoted,
            encoding=args.encoding,
            captions=not args.no_captions,
        ),
        out=args.out,
        name=args.name,
        shard_size=args.shard_size,
        image=ImageSettings(
            size=args.image_size,
            resize_mode=args.resize_mode,
            enlarge=args.enlarge,
            format=args.image_format,
            quality=_QUALITY[args.image_format] if args.quality is None else args.quality,
            exact=args.exact,
            skip_reencode=args.skip_reencode,
            min_size=args.min_size,
            max_area=args.max_area,
            max_aspect_ratio=args.max_aspect_ratio,
            max_bytes=args.max_bytes,
            max_pixels=args.max_pixels,
            hash=args.hash,
            exif=args.exif == "on",
            blur_faces=args.blur_faces,
        ),
        network=_network(args),
        engine=args.engine,
        stop_on_collapse=not args.no_stop,
        attempts=args.attempts,
    )
    report = ingest(settings, make_executor(args, work_of_list(settings), workers=cores(), cpus=1))
    _tell(report, args.out)
    show(f"{report.summary.finished} shards made, {report.summary.skipped} were there already, in {args.out}")
    if remade := report.summary.remade:
        more = f" and {len(remade) - 5} more" if len(remade) > 5 else ""
        show(f"{len(remade)} of them made again: {'; '.join(remade[:5])}{more}")
    refuse_nothing(args.out, [report])
    return 0


def run_retry(args: argparse.Namespace) -> int:
    from ingest.retry import retry, work_of_retry  # noqa: PLC0415
    from ingest.run import refuse_nothing  # noqa: PLC0415

    executor = make_executor(args, work_of_retry(args.out), workers=cores(), cpus=1)
    reports = retry(args.out, _network(args), executor, stop_on_collapse=not args.no_stop, attempts=args.attempts)
    for report in reports:
        _tell(report, args.out)
    if not reports:
        show("nothing to fetch again: no row failed that may pass")
    refuse_nothing(args.out, reports)
    return 0


def run_report(args: argparse.Namespace) -> int:
    from ingest.report import write_report  # noqa: PLC0415

    show(write_report(args.out))
    return 0


def _tell(report: IngestReport, out: str) -> None:
    apart = {"duplicate": "duplicates", "filtered_where": "filtered"}
    failed = {cause: count for cause, count in report.failed.items() if cause not in apart}
    parts = [f"{report.failed[cause]} {name}" for cause, name in apart.items() if cause in report.failed]
    show(f"{report.rows} rows: " + ", ".join([f"{report.samples} samples", f"{sum(failed.values())} failed", *parts]))
    for cause, count in sorted(failed.items(), key=lambda item: -item[1]):
        show(f"  {count:>8}  {cause}")
    if "bad_row" in failed:
        show("bad_row: error_message in the ledger names each one's line and fault; --encoding helps if it is no UTF-8")
    if "blocked_address" in failed:
        again = f"clipstill ingest retry {shlex.quote(out)} --allow-address ADDRESS"
        show(f"blocked_address: not fetched, as the address is not public. If it is a machine of yours: {again}")
