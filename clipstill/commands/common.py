"""What several commands share: where shard work runs, and how results are printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from clipstill.parser import Parser
from shards.errors import UserError
from shards.ray_machines import Machine, Needs

if TYPE_CHECKING:
    from shards.choice import Work
    from shards.executor import Executor

R = TypeVar("R")

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
    default = f"{workers}, or of a cluster as many as it has room for; little work runs in this process"
    group.add_argument("--workers", type=int, metavar="N", help=f"how many run at once, on Ray (default: {default})")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--ray-address", metavar="ADDRESS", help="join this Ray cluster instead of starting Ray here")
    where.add_argument("--in-process", action="store_true", help="one shard after the other in this process, no Ray")
    group.add_argument("--worker-cpus", type=float, metavar="N", help="cores that Ray reserves for each worker")
    group.add_argument("--worker-gpus", type=float, metavar="N", help="GPUs that Ray reserves for each worker")
    group.add_argument("--worker-memory", type=float, metavar="GB", help="memory that Ray reserves for each worker")


def make_executor(
    args: argparse.Namespace,
    work: Work,
    *,
    workers: int,
    cpus: float,
    gpus: float = 0,
    machines: Sequence[Machine] | None = None,
) -> Executor:
    """The executor that `add_runner`'s options ask for, or that fits the work; `machines`: those of the cluster that
    is to be joined, where they are known.
    """
    from shards.choice import choose_executor  # noqa: PLC0415 - a command's help needs none

    asked = {name: getattr(args, f"worker_{name}") for name in ("cpus", "gpus", "memory")}
    for name, amount in asked.items():
        if amount is not None and not (0 < amount < math.inf or (name == "gpus" and amount == 0)):
            raise UserError(f"{amount:g} for each worker", where=f"--worker-{name}", do="Give a number above 0")
    needs = Needs(
        cpus if asked["cpus"] is None else asked["cpus"],
        gpus if asked["gpus"] is None else asked["gpus"],
        int((asked["memory"] or 0) * 1e9),
    )
    if args.ray_address and args.workers is None:
        # Where the machines are still to come, one is enough to have an autoscaler begin; how many more, nobody knows.
        workers = max(1, needs.room(machines_of(args.ray_address) if machines is None else machines))
    where = {"in_process": args.in_process, "asked": args.workers, "address": args.ray_address}
    return choose_executor(work, workers=workers, needs=needs, **where)


def machines_of(address: str) -> list[Machine]:
    """Those of a running cluster. Raises `UserError` if it cannot be reached."""
    from shards.ray_session import cluster_machines  # noqa: PLC0415 - brings Ray

    return cluster_machines(address)


def called_there(address: str | None, function: Callable[..., R], *arguments: Any) -> R:
    """Call a function here, or as one task of the Ray cluster at `address`: with a GPU where it has any, and with the
    cores that go with it.
    """
    if address is None:
        return function(*arguments)
    from shards.ray_executor import RayExecutor  # noqa: PLC0415 - brings Ray

    machines = [machine.resources for machine in machines_of(address) if machine.resources.get("CPU", 0) >= 1]
    gpus = 1 if any(machine.get("GPU", 0) >= 1 for machine in machines) else 0
    fit = [machine for machine in machines if machine.get("GPU", 0) >= gpus]
    cpus = min((int(machine["CPU"] / max(1, machine.get("GPU", 0))) for machine in fit), default=1)
    with contextlib.closing(RayExecutor(1, Needs(max(1, cpus), gpus), address=address)) as executor:
        return executor.once(function, *arguments)


def cores() -> int:
    return os.cpu_count() or 1


def show(text: str) -> None:
    """Print a result on standard output."""
    print(text, flush=True)  # noqa: T201


def show_json(value: Any) -> None:
    show(json.dumps(value, indent=1, ensure_ascii=False))
