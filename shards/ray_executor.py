"""Run shard tasks on Ray: an actor for each worker, at `overlap` shards at once; only specs and records cross the wire.

Starts Ray on this machine by itself, or joins a running cluster by address. A dead actor is replaced and what it was at
is tried again, each shard alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from shards.errors import UserError
from shards.runner import Host, Outcome
from shards.task import ShardTask, Spec

log = logging.getLogger(__name__)


R = TypeVar("R")

_BEGINNINGS = 3
"""When so many workers in a row have died before they began, another one would, too."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Actor(Host):
    def __init__(self, task: ShardTask[Any], threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        super().__init__(task)

    def begin(self) -> None:
        """Answered once the process is there."""


def _call(threads: int, function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return function(*arguments)


@contextlib.contextmanager
def ray_session(*, cpus: int, address: str | None = None) -> Iterator[None]:
    """Ray for the length of the block: started here with `cpus` cores, or a cluster joined by `address`.

    Where Ray runs in this process already nothing happens, so executors inside a block share one start.
    Raises `UserError` if Ray cannot be started or joined.
    """
    import ray  # noqa: PLC0415 - slow to import, and not needed to read shards

    if ray.is_initialized():
        yield
        return
    # Ray's auto-configuration of `uv run` rebuilds the environment in every worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # A cluster address in the environment must not turn a local run into a remote one.
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cpus}
        # Ray puts the working directory on its workers' path. A folder there that is called `shards`, as a dataset well
        # may be, would hide the package of that name if that is installed by a hook rather than found on the path.
        home = str(Path(__file__).parents[1])
        path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != home]
        os.environ["PYTHONPATH"] = os.pathsep.join([*path, home])
    else:
        _check_listening(address)
        options["address"] = address
        # One try of half a minute, not twenty: something answers there, so a retry will not mend it.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot start or join Ray at {address or 'this machine'!r} ({reason})",
            do="Check the address, or leave it out to start Ray here",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def cluster_resources(address: str) -> dict[str, float]:
    """What a running cluster has in all: "CPU", "GPU". Raises `UserError` if it cannot be reached."""
    import ray  # noqa: PLC0415

    with ray_session(cpus=1, address=address):
        resources: dict[str, float] = ray.cluster_resources()
        return resources


@dataclass(eq=False)
class _Seat:
    """An actor and what it is at: Ray's reference of each call → the spec, and when it was handed over."""

    actor: Any
    begun: bool = False
    at: dict[Any, tuple[Spec, float]] = field(default_factory=dict)

    @property
    def careful(self) -> bool:
        return any(spec.careful for spec, _ in self.at.values())


class RayExecutor:
    """An executor with at most `workers` actors, each reserving `cpus` cores and `gpus` devices.

    `address` joins a cluster (`auto`, `ray://host:port`, `host:port`); None starts Ray here and stops it at the end.
    There are never more actors than the cluster has room for, and a shard is only handed to one that has begun.
    Raises `UserError` if the cluster cannot be reached or cannot ever hold an actor of that size.
    """

    def __init__(self, workers: int, *, cpus: float = 1, gpus: float = 0, address: str | None = None) -> None:
        if workers < 1:
            raise UserError(f"{workers} workers cannot do any work", do="Ask for at least 1")
        self.slots = workers
        self._workers = workers
        self._cpus, self._gpus, self._address = cpus, gpus, address
        self._task: ShardTask[Any] | None = None
        self._seats: list[_Seat] = []
        self._calls: dict[Any, _Seat] = {}
        self._waiting: deque[Spec] = deque()
        self._ended: deque[Outcome] = deque()
        self._unbegun = 0
        self._session = contextlib.ExitStack()

    def once(self, function: Callable[..., R], *arguments: Any) -> R:
        import ray  # noqa: PLC0415

        self._begin()
        self._room()
        call = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(_call)
        try:
            result: R = ray.get(call.remote(max(1, int(self._cpus)), function, arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        return result

    def start(self, task: ShardTask[Any]) -> None:
        self._task = task
        self._begin()
        self.slots = self._workers * task.overlap
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        cpus = max(os.cpu_count() or 1, round(self._workers * self._cpus))
        self._session.enter_context(ray_session(cpus=cpus, address=self._address))

    def _room(self) -> int:
        """How many workers fit into the cluster. Raises `UserError` if none does."""
        import ray  # noqa: PLC0415

        needs = {kind: need for kind, need in (("CPU", self._cpus), ("GPU", self._gpus)) if need > 0}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(min(int(node.get(kind, 0) / need) for kind, need in needs.items()) for node in nodes)
        if not room:
            asked = " and ".join(f"{need:g} {kind}" for kind, need in needs.items())
            have = "; ".join(", ".join(f"{node.get(kind, 0):g} {kind}" for kind in needs) for node in nodes)
            raise UserError(
                f"a worker needs {asked} on one machine, those of the Ray cluster have {have}",
                do="Ask for less, or join a larger cluster with --ray-address",
            )
        return room

    def _fill(self) -> None:
        """As many actors as are wanted and have room."""
        import ray  # noqa: PLC0415

        assert self._task is not None
        # No restarts by Ray itself: the runner counts attempts, and a crash must be seen to be counted.
        remote = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self._task.overlap,
        )(_Actor)
        for _ in range(min(self._workers, self._room()) - len(self._seats)):
            seat = _Seat(remote.remote(self._task, max(1, int(self._cpus))))
            self._seats.append(seat)
            self._calls[seat.actor.begin.remote()] = seat

    def submit(self, spec: Spec) -> None:
        self._waiting.append(spec)

    def _hand_out(self) -> None:
        """Give what waits to whoever has least to do; what died once goes first, and only to a worker with nothing."""
        assert self._task is not None
        careful = deque(spec for spec in self._waiting if spec.careful)
        others = deque(spec for spec in self._waiting if not spec.careful)
        begun = [seat for seat in self._seats if seat.begun]
        for seat in begun:
            if careful and not seat.at:
                self._give(seat, careful.popleft())
        free = [seat for seat in begun if not seat.careful]
        if careful and free and len(free) == len(begun):
            # Someone must run empty to take it.
            free.remove(min(free, key=lambda seat: len(seat.at)))
        while others and free:
            seat = min(free, key=lambda seat: len(seat.at))
            if len(seat.at) >= self._task.overlap:
                break
            self._give(seat, others.popleft())
        self._waiting = careful + others

    def _give(self, seat: _Seat, spec: Spec) -> None:
        call = seat.actor.run.remote(spec)
        seat.at[call] = spec, time.monotonic()
        self._calls[call] = seat

    def wait(self) -> Outcome:
        import ray  # noqa: PLC0415

        while not self._ended:
            self._hand_out()
            (ready, *_), _ = ray.wait(list(self._calls), num_returns=1)
            self._take(ready)
        return self._ended.popleft()

    def _take(self, ready: Any) -> None:
        """What came of a call: an outcome, a worker that has begun, or one that has died."""
        import ray  # noqa: PLC0415

        seat = self._calls.pop(ready)
        try:
            outcome: Outcome | None = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            spec, _ = seat.at.pop(ready)
            cause = f"the worker failed ({error.cause})"
            self._ended.append(Outcome(spec, kind="transient", cause=cause, trace=str(error)))
        except ray.exceptions.RayError as error:
            self._bury(seat, ready, error)
        else:
            seat.begun, self._unbegun = True, 0
            if outcome is not None:
                del seat.at[ready]
                self._ended.append(outcome)

    def _bury(self, seat: _Seat, first: Any, error: Exception) -> None:
        """A worker that died, was killed for want of memory, or whose machine went: what it was at is to be retried."""
        import ray  # noqa: PLC0415

        self._seats.remove(seat)
        lost = dict(seat.at)
        # What had ended before is not lost.
        others = [call for call in lost if call is not first]
        for call in ray.wait(others, num_returns=len(others), timeout=0)[0] if others else []:
            with contextlib.suppress(ray.exceptions.RayError):
                self._ended.append(ray.get(call))
                del lost[call]
        for call in [call for call, whose in self._calls.items() if whose is seat]:
            del self._calls[call]
        # Whatever is left of it must not run on.
        ray.kill(seat.actor)
        lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
        # Where the worker could not even begin, the last line is the cause.
        reason = lines[-1] if "creation task" in lines[0] else lines[0]
        for spec, _ in lost.values():
            cause = f"the worker process died ({reason})"
            died = Outcome(replace(spec, careful=True), kind="transient", cause=cause, trace="\n".join(lines))
            self._ended.append(died)
        if not seat.begun:
            self._unbegun += 1
            if self._unbegun == _BEGINNINGS:
                raise UserError(
                    f"no worker process can begin ({reason})",
                    do="See that this code and its packages are there, on every machine",
                )
        self._fill()

    def close(self) -> None:
        import ray  # noqa: PLC0415

        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats, self._calls = [], {}
        self._waiting.clear()
        self._ended.clear()
        self._session.close()


def _check_listening(address: str) -> None:
    """Raise `UserError` if nothing listens at a `host:port`; Ray itself would go on trying for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit() or "://" in host:
        return  # `auto`, or something Ray judges by itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster answers at {address!r} ({error})",
            do="Check the address, or leave it out to start Ray here",
        ) from None
