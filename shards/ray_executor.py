"""Run shard tasks on Ray: an actor for each worker, at `overlap` shards at once; only specs and records cross the wire.

Starts Ray on this machine by itself, or joins a running cluster by address. A dead actor is replaced and what it was at
is tried again, each shard alone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from shards.errors import UserError, one_line
from shards.ray_outages import Heard, leave_for_driver
from shards.ray_session import RayLostError, RaySession, ray_session
from shards.runner import Host, Outcome
from shards.task import ShardTask, Spec

log = logging.getLogger(__name__)


R = TypeVar("R")

_LOOK_EVERY_S = 2.0
_TRIES = 3
"""So many workers in a row that die before they begin, or starts of Ray that bring nothing, and there is no use."""


class _Actor(Host):
    def __init__(self, task: ShardTask[Any], threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        leave_for_driver()
        super().__init__(task)

    def begin(self) -> None:
        """Answered once the process is there."""


def _call(threads: int, function: Callable[..., R], arguments: tuple[Any, ...]) -> R:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    return function(*arguments)


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
    There are as many actors as the cluster has room for, also when machines leave or join it. A shard is only handed to
    one that has begun. A Ray that was started here and dies is started again.
    Raises `UserError` if the cluster cannot be reached, is lost, or cannot ever hold an actor of that size.
    """

    patience = 300.0
    """Seconds in which nothing ends before it is said what has not moved."""

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
        self._unbegun = self._renewals = 0
        self._looked = self._moved = 0.0
        self._patience = self.patience
        self._shared = False
        self._heard = Heard()
        self._ray: RaySession | None = None
        self._session = contextlib.ExitStack()

    def once(self, function: Callable[..., R], *arguments: Any) -> R:
        import ray  # noqa: PLC0415

        self._begin()
        self._check_room()
        remote = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(_call)
        call = remote.remote(max(1, int(self._cpus)), function, arguments)
        try:
            while not ray.wait([call], timeout=_LOOK_EVERY_S)[0]:
                self._machines()
            result: R = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except (ray.exceptions.RayError, RayLostError) as error:
            reason, _ = _cause(error)
            raise UserError(f"the worker process died ({reason})", do="Run the same command again") from None
        return result

    def start(self, task: ShardTask[Any]) -> None:
        self._task = task
        self._moved = self._looked = time.monotonic()
        self._patience = self.patience
        self._unbegun = self._renewals = 0
        self._begin()
        self.slots = self._workers * task.overlap
        try:
            self._check_room()
            self._fill()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        import ray  # noqa: PLC0415

        if self._ray is None:
            self._shared = ray.is_initialized()
            cpus = max(os.cpu_count() or 1, round(self._workers * self._cpus))
            self._ray = self._session.enter_context(ray_session(cpus=cpus, address=self._address))

    def _machines(self) -> list[dict[str, float]]:
        assert self._ray is not None
        return self._ray.machines()

    def _needs(self) -> dict[str, float]:
        return {kind: need for kind, need in (("CPU", self._cpus), ("GPU", self._gpus)) if need > 0}

    def _room(self) -> int:
        """How many workers fit into the cluster."""
        needs = self._needs()
        return sum(
            min(int(machine.get(kind, 0) / need) for kind, need in needs.items()) for machine in self._machines()
        )

    def _check_room(self) -> None:
        """Raise `UserError` if the cluster has no machine that a worker fits on."""
        if not self._room():
            needs = self._needs()
            asked = " and ".join(f"{need:g} {kind}" for kind, need in needs.items())
            have = "; ".join(
                ", ".join(f"{there.get(kind, 0):g} {kind}" for kind in needs) for there in self._machines()
            )
            raise UserError(
                f"a worker needs {asked} on one machine, those of the Ray cluster have {have}",
                do="Ask for less, or join a larger cluster with --ray-address",
            )

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
        if not self._waiting and not any(seat.at for seat in self._seats):
            # There was nothing that could have ended.
            self._moved = time.monotonic()
        self._waiting.append(spec)

    def wait(self, most: float | None = None) -> Outcome | None:
        until = math.inf if most is None else time.monotonic() + most
        while not self._ended:
            try:
                left = max(0.0, until - time.monotonic())
                if not self._step(min(left, _LOOK_EVERY_S)) and time.monotonic() >= until:
                    return None
            except RayLostError as lost:
                self._renew(str(lost))
        self._moved = time.monotonic()
        self._patience = self.patience
        outcome = self._ended.popleft()
        if outcome.result is not None:
            self._renewals = 0
        return outcome

    def _step(self, most: float) -> bool:
        """Hand out what waits and see what came of one call, if one ends within `most` seconds: whether one did.

        Looks around every few seconds.
        """
        import ray  # noqa: PLC0415

        ended: list[Any] = []
        try:
            self._hand_out()
            if self._calls:
                ended, _ = ray.wait(list(self._calls), num_returns=1, timeout=most)
                for call in ended:
                    self._take(call)
            else:
                time.sleep(most)
        except (ray.exceptions.RayError, ConnectionError):
            self._machines()  # knows better
            raise
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._fill()
            self._heard.look()
            self._say_what_stands()
            self._looked = time.monotonic()
        return bool(ended)

    def _hand_out(self) -> None:
        """Give what waits to whoever has least to do; what died once goes first, and only to a worker with nothing.

        Nobody gets more than an even share: a worker that begins a little later shall find something to do.
        """
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
        under_way = sum(len(seat.at) for seat in self._seats)
        share = math.ceil((len(self._waiting) + under_way) / max(1, len(self._seats)))
        while others and free:
            seat = min(free, key=lambda seat: len(seat.at))
            if len(seat.at) >= min(share, self._task.overlap):
                break
            self._give(seat, others.popleft())
        self._waiting = careful + others

    def _give(self, seat: _Seat, spec: Spec) -> None:
        call = seat.actor.run.remote(spec)
        seat.at[call] = spec, time.monotonic()
        self._calls[call] = seat

    def _take(self, call: Any) -> None:
        """What came of a call: an outcome, a worker that has begun, or one that has died."""
        import ray  # noqa: PLC0415

        seat = self._calls.pop(call)
        try:
            outcome: Outcome | None = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            if call not in seat.at:
                raise
            spec, _ = seat.at.pop(call)
            cause = f"the worker failed ({error.cause})"
            self._ended.append(Outcome(spec, kind="transient", cause=cause, trace=str(error)))
        except ray.exceptions.RayError as error:
            self._bury(seat, error)
        else:
            seat.begun, self._unbegun = True, 0
            if outcome is not None:
                del seat.at[call]
                self._ended.append(outcome)

    def _bury(self, seat: _Seat, error: Exception) -> None:
        """A worker that died, was killed for want of memory, or whose machine went: what it was at is to be retried."""
        import ray  # noqa: PLC0415

        self._seats.remove(seat)
        calls = [call for call, whose in self._calls.items() if whose is seat]
        # What had ended before is not lost.
        for call in ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []:
            with contextlib.suppress(ray.exceptions.RayError):
                self._ended.append(ray.get(call))
                del seat.at[call]
        for call in calls:
            del self._calls[call]
        reason, trace = _cause(error)
        self._died(seat, f"the worker process died ({reason})", trace)
        self._machines()  # where Ray itself has died, nothing more can be asked of it
        # Whatever is left of it must not run on.
        ray.kill(seat.actor)
        if not seat.begun:
            self._unbegun += 1
            if self._unbegun >= _TRIES:
                raise UserError(
                    f"no worker process can begin ({reason})",
                    do="See that the same code and packages are on every machine of the cluster",
                )
        self._fill()

    def _died(self, seat: _Seat, cause: str, trace: str) -> None:
        for spec, _ in seat.at.values():
            self._ended.append(Outcome(replace(spec, careful=True), kind="transient", cause=cause, trace=trace))

    def _renew(self, lost: str) -> None:
        """Start Ray here again; what was under way is to be retried."""
        assert self._ray is not None
        self._renewals += 1
        if self._renewals > _TRIES:
            raise UserError(
                f"Ray has died here {_TRIES} times in a row ({lost})",
                do="It may lack memory (`dmesg` tells): use fewer --workers, or --in-process",
            )
        log.warning("Ray has died here (%s): starting it again", lost)
        for seat in self._seats:
            self._died(seat, f"Ray died ({lost})", "")
        self._seats, self._calls = [], {}
        self._ray.renew()
        self._fill()

    def _say_what_stands(self) -> None:
        now = time.monotonic()
        if now - self._moved < self._patience or self._task is None:
            return
        under_way = sorted((since, spec.label) for seat in self._seats for spec, since in seat.at.values())
        parts = [f"{label} for {_minutes(now - since)}" for since, label in under_way[:5]]
        if len(under_way) > len(parts):
            parts.append(f"{len(under_way) - len(parts)} more")
        begun = sum(seat.begun for seat in self._seats)
        if begun < self._workers:
            parts.append(f"{begun} of {self._workers} workers have begun, the others wait for room in the cluster")
        log.warning("%s: nothing has ended for %s: %s", self._task.name, _minutes(now - self._moved), "; ".join(parts))
        self._patience *= 2

    def close(self) -> None:
        import ray  # noqa: PLC0415

        if self._ray is not None:
            with contextlib.suppress(RayLostError, UserError):
                self._machines()
                self._heard.look()
                self._heard.forget()
                # Where Ray outlives us; otherwise they go with it.
                for seat in self._seats if self._shared else ():
                    ray.kill(seat.actor)
        self._seats, self._calls = [], {}
        self._waiting.clear()
        self._ended.clear()
        self._session.close()
        self._ray = None


def _cause(error: Exception) -> tuple[str, str]:
    """Why a worker died, in one line, and all that Ray says of it."""
    lines = [line for line in map(one_line, str(error).splitlines()) if line]
    if any("low on memory" in line for line in lines):
        return "its machine ran out of memory", "\n".join(lines)
    # Where the worker could not even begin, the last line is the cause.
    return (lines[-1] if "creation task" in lines[0] else lines[0]), "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
