"""What several commands share: where shard work runs, and how results are printed."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from shards.runner import Executor, InProcess

Subparsers = Any
"""What `ArgumentParser.add_subparsers` returns; argparse keeps its type private."""


def add_command(commands: Subparsers, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A subcommand whose help ends with an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary.splitlines()[0],
        description=summary,
        epilog=f"example:\n{example}",
        formatter_class=_Help,
    )
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of descriptions and shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is False or action.default in (None, "", [], argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def add_runner(parser: argparse.ArgumentParser, *, workers: str) -> None:
    """The options that say where shard tasks run."""
    group = parser.add_argument_group("where it runs")
    group.add_argument("--workers", type=int, metavar="N", help=f"how many run at once (default: {workers})")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--ray-address", metavar="ADDRESS", help="join this Ray cluster instead of starting Ray here")
    where.add_argument("--in-process", action="store_true", help="one shard after the other in this process, no Ray")


def make_executor(args: argparse.Namespace, *, workers: int, cpus: float, gpus: float = 0) -> Executor:
    """The executor that `add_runner`'s options ask for."""
    if args.in_process:
        return InProcess()
    from shards.ray_executor import RayExecutor  # noqa: PLC0415 - only needed here

    return RayExecutor(
        workers if args.workers is None else args.workers, cpus=cpus, gpus=gpus, address=args.ray_address
    )


def cores() -> int:
    return os.cpu_count() or 1


def show(text: str) -> None:
    """Print a result on standard output."""
    print(text, flush=True)  # noqa: T201


def show_json(value: Any) -> None:
    show(json.dumps(value, indent=1, ensure_ascii=False))
