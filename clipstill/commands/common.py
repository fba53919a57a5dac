"""What several commands share: where shard work runs, and how results are printed."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clipstill.parser import Parser

if TYPE_CHECKING:
    from shards.executors import Work
    from shards.runner import Executor

Subparsers = Any
"""What `ArgumentParser.add_subparsers` returns; argparse keeps its type private."""


def add_command(
    commands: Subparsers,
    name: str,
    summary: str,
    example: str,
    *,
    run: Callable[[argparse.Namespace], int],
    fill: Callable[[Parser], None],
    **options: Any,
) -> None:
    """A subcommand that `run` runs, with the options that `fill` adds; its help ends with an example."""
    parser: Parser = commands.add_parser(
        name,
        help=summary.splitlines()[0],
        description=summary,
        epilog=f"example:\n{example}",
        formatter_class=_Help,
        fill=fill,
        **options,
    )
    parser.set_defaults(run=run)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps line breaks of descriptions and shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is False or action.default in (None, "", [], argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def add_runner(parser: Parser, *, workers: str) -> None:
    """The options that say where shard tasks run."""
    group = parser.section("where it runs")
    default = f"{workers}; little work runs in this process"
    group.add_argument("--workers", type=int, metavar="N", help=f"how many run at once, on Ray (default: {default})")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--ray-address", metavar="ADDRESS", help="join this Ray cluster instead of starting Ray here")
    where.add_argument("--in-process", action="store_true", help="one shard after the other in this process, no Ray")


def make_executor(args: argparse.Namespace, work: Work, *, workers: int, cpus: float, gpus: float = 0) -> Executor:
    """The executor that `add_runner`'s options ask for, or that fits the work."""
    from shards.executors import choose_executor  # noqa: PLC0415 - a command's help needs none

    how = {"in_process": args.in_process, "asked": args.workers, "address": args.ray_address}
    return choose_executor(work, workers=workers, cpus=cpus, gpus=gpus, **how)


def cores() -> int:
    return os.cpu_count() or 1


def show(text: str) -> None:
    """Print a result on standard output."""
    print(text, flush=True)  # noqa: T201


def show_json(value: Any) -> None:
    show(json.dumps(value, indent=1))
