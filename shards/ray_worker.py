"""A worker on Ray: the process that runs shards, the driver's seat for it, and why it died."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from shards.errors import one_line
from shards.executor import Host, Outcome
from shards.ray_metrics import WorkerMetrics
from shards.ray_outages import leave_for_driver
from shards.task import ShardTask, Spec

LEAVE_S = 12.0
"""So long a shard may go on where it is to end. The shortest notice of a cloud is half a minute."""


class RayWorker(Host):
    """An actor's class. It counts what it does in Ray's metrics."""

    def __init__(self, task: ShardTask[Any], threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        leave_for_driver()
        super().__init__(task)
        _end_soon_when_told()
        self._metrics = WorkerMetrics(task.name)

    def begin(self) -> str:
        """Answered once the process is there: on which machine."""
        import ray  # noqa: PLC0415

        machine: str = ray.get_runtime_context().get_node_id()
        return machine

    def run(self, spec: Spec) -> Outcome:
        outcome = super().run(spec)
        self._metrics.ended(outcome, self.busy_seconds)
        return outcome


def _end_soon_when_told() -> None:
    """At SIGTERM Ray's worker takes nothing more and ends once its calls have: that is to be soon."""
    if threading.current_thread() is not threading.main_thread():
        return
    rays = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: Any) -> None:
        last = threading.Timer(LEAVE_S, os._exit, (128 + signal.SIGTERM,))
        last.daemon = True
        last.start()
        if callable(rays):
            rays(number, frame)

    signal.signal(signal.SIGTERM, end)


@dataclass(eq=False)
class Seat:
    """An actor and what it is at: Ray's reference of each call → the spec, and when it was handed over.

    `machine` is where it runs, "" until it has begun; `leaving` since when that is to go.
    """

    actor: Any
    machine: str = ""
    leaving: float | None = None
    at: dict[Any, tuple[Spec, float]] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        return bool(self.machine)

    @property
    def careful(self) -> bool:
        return any(spec.careful for spec, _ in self.at.values())

    def give(self, spec: Spec) -> Any:
        """Hand a spec over; Ray's reference of the call."""
        reference = self.actor.run.remote(spec)
        self.at[reference] = spec, time.monotonic()
        return reference


def cause_of(error: Exception) -> tuple[str, str]:
    """Why a worker died, in one line, and all that Ray says of it."""
    lines = [line for line in map(one_line, str(error).splitlines()) if line]
    if any("low on memory" in line for line in lines):
        return "its machine ran out of memory", "\n".join(lines)
    # Where the worker could not even begin, the last line is the cause.
    return (lines[-1] if "creation task" in lines[0] else lines[0]), "\n".join(lines)


def machine_went(error: Exception) -> bool:
    """Whether Ray says that not the worker died, but the machine under it."""
    said = ("node has died", "node was terminated", "node it was running on is dead")
    return bool(getattr(error, "preempted", False)) or any(words in str(error) for words in said)
