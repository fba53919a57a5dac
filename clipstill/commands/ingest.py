"""`clipstill ingest`, `ingest retry`, `ingest report`: metadata to shards, again for what may pass, and a page."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from clipstill.commands.common import Subparsers, add_command, add_runner, cores, make_executor, show
from clipstill.options import add_options, given
from clipstill.parser import Parser
from shards.settings import make

if TYPE_CHECKING:
    from ingest import IngestReport

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


def add(commands: Subparsers) -> None:
    add_command(commands, "ingest", _SUMMARY, _EXAMPLE, run=run, fill=_options)
    add_command(
        commands, "ingest retry", _RETRY, "  clipstill ingest retry data/cc3m\n", run=run_retry, fill=_retry_options
    )
    add_command(
        commands,
        "ingest report",
        _REPORT,
        "  clipstill ingest report data/cc3m\n",
        run=run_report,
        fill=_report_options,
    )


def _options(parser: Parser) -> None:
    from ingest.settings import IngestSettings  # noqa: PLC0415 - each command imports its own settings alone

    add_options(parser, IngestSettings)
    add_runner(parser, workers="the machine's cores")


def _retry_options(parser: Parser) -> None:
    from ingest.settings import IngestSettings  # noqa: PLC0415

    parser.add_argument("out", metavar="OUT", help="a dataset that `clipstill ingest` wrote")
    add_options(parser, IngestSettings, only={"network", "attempts", "stop_on_collapse"})
    add_runner(parser, workers="the machine's cores")


def _report_options(parser: Parser) -> None:
    parser.add_argument("out", metavar="OUT", help="a dataset that `clipstill ingest` wrote, finished or not")


def run(args: argparse.Namespace) -> int:
    from ingest.settings import IngestSettings  # noqa: PLC0415

    values = given(args, IngestSettings)
    kept = [*values["source"].get("keep", ()), values.get("image", {}).get("blur_faces")]
    values["source"]["keep"] = tuple(dict.fromkeys(filter(None, kept)))
    settings = make(IngestSettings, values)
    from ingest.run import ingest, refuse_nothing, work_of_list  # noqa: PLC0415 - wrong options are told before

    report = ingest(settings, make_executor(args, work_of_list(settings), workers=cores(), cpus=1))
    _tell(report, settings.out)
    show(f"{report.summary.finished} shards made, {report.summary.skipped} were there already, in {settings.out}")
    if remade := report.summary.remade:
        more = f" and {len(remade) - 5} more" if len(remade) > 5 else ""
        show(f"{len(remade)} of them made again: {'; '.join(remade[:5])}{more}")
    refuse_nothing(settings.out, [report])
    return 0


def run_retry(args: argparse.Namespace) -> int:
    from ingest.settings import IngestSettings, NetworkSettings  # noqa: PLC0415

    values = given(args, IngestSettings)
    network = make(NetworkSettings, values.pop("network", {}))
    values.pop("out")
    from ingest.retry import retry, work_of_retry  # noqa: PLC0415
    from ingest.run import refuse_nothing  # noqa: PLC0415

    executor = make_executor(args, work_of_retry(args.out), workers=cores(), cpus=1)
    reports = retry(args.out, network, executor, **values)
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
