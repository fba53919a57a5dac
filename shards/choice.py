"""Where shard work runs: as the user says, else in this process where Ray would take longer to begin than the work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shards.executor import Executor, InProcess
from shards.ray_machines import Needs

RAY_S = 10.0
"""What Ray costs: to start it, import in its workers and end it took 5.3 s on two idle cores (`seconds_whole` less
`seconds` in benchmarks/results/ingest.json), and 38 s on the same cores busy with other work."""
LONG_S = 200.0
"""Work of which that is a twentieth. Then it matters more that Ray replaces a worker which dies."""


@dataclass(frozen=True)
class Work:
    """How much there is to do: in words, and about how many seconds that takes a worker that has begun."""

    words: str
    seconds: float


ENDLESS = Work("", math.inf)
"""Where it cannot be told beforehand, or is never little."""


def is_little(work: Work, workers: int) -> bool:
    """Whether Ray would take longer to start than `workers` of its own save."""
    return work.seconds * (1 - 1 / workers) < RAY_S and work.seconds < LONG_S


def choose_executor(
    work: Work,
    *,
    workers: int,
    needs: Needs | None = None,
    in_process: bool = False,
    asked: int | None = None,
    address: str | None = None,
) -> Executor:
    """The executor for this much work.

    `asked` is how many workers the user wants, if he says so, in place of `workers`; `needs` what each of them
    reserves, a core unless given; `address` that of a cluster.
    """
    if in_process:
        return InProcess()
    if asked is None and address is None and is_little(work, workers):
        return InProcess(f"{work.words}: in this process, as Ray takes longer to start (with --workers it would)")
    from shards.ray_executor import RayExecutor  # noqa: PLC0415 - slow to import

    return RayExecutor(workers if asked is None else asked, needs or Needs(), address=address)
