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
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from shards.errors import UserError
from shards.executor import Outcome
from shards.ray_call import call_on_ray
from shards.ray_machines import Machine, Needs
from shards.ray_outages import Heard
from shards.ray_session import RayLostError, RaySession, ray_session
from shards.ray_worker import LEAVE_S, RayWorker, Seat, cause_of, machine_went
from shards.task import ShardTask, Spec

log = logging.getLogger(__name__)


R = TypeVar("R")

_LOOK_EVERY_S = 2.0
_TRIES = 3
"""So many workers in a row that die before they begin, or starts of Ray that bring nothing, and there is no use."""
_LOSSES = 10
"""A shard whose machine was lost so often may be what kills them: that counts as a death of its worker."""


class RayExecutor:
    """An executor with at most `workers` actors, each reserving what it `needs`, a core unless given.

    `address` joins a cluster (`auto`, `ray://host:port`, `host:port`); None starts Ray here and stops it at the end.
    All actors are asked for at once: those that find no room wait for a machine to join, and an autoscaler sees them.
    A shard is only handed to one that has begun. What a lost machine was at is handed to others, and is no attempt; a
    machine that is to go gets nothing more. A Ray that was started here and dies is started again.
    Raises `UserError` if the cluster cannot be reached, is lost, or has no room for any actor of that size.
    """

    patience = 300.0
    """Seconds in which nothing ends before it is said what has not moved."""
    room_patience = 900.0
    """Seconds that a cluster may have no machine with room for any worker."""

    def __init__(self, workers: int, needs: Needs | None = None, *, address: str | None = None) -> None:
        if workers < 1:
            raise UserError(f"{workers} workers cannot do any work", do="Ask for at least 1")
        self.workers = self.slots = workers
        self._needs, self._address = needs or Needs(), address
        self._threads = max(1, int(self._needs.cpus))
        self._task: ShardTask[Any] | None = None
        self._seats: list[Seat] = []
        self._calls: dict[Any, Seat] = {}
        self._losses: Counter[Spec] = Counter()
        self._waiting: deque[Spec] = deque()
        self._ended: deque[Outcome] = deque()
        self._unbegun = self._renewals = 0
        self._looked = self._moved = 0.0
        self._room = 0
        self._no_room_since: float | None = None
        self._patience = self.patience
        self._shared = False
        self._heard = Heard()
        self._ray: RaySession | None = None
        self._session = contextlib.ExitStack()

    def once(self, function: Callable[..., R], *arguments: Any) -> R:
        self._begin()
        self._check_room()
        return call_on_ray(self._needs, self._threads, self._check_room, function, *arguments)

    def start(self, task: ShardTask[Any]) -> None:
        self._task = task
        self._moved = self._looked = time.monotonic()
        self._patience = self.patience
        self._unbegun = self._renewals = 0
        self._begin()
        self.slots = self.workers * task.overlap
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
            cpus = max(os.cpu_count() or 1, round(self.workers * self._needs.cpus))
            self._ray = self._session.enter_context(ray_session(cpus=cpus, address=self._address))

    def _machines(self) -> list[Machine]:
        assert self._ray is not None
        return self._ray.machines()

    def _check_room(self) -> list[Machine]:
        """The machines that are alive. Raises `UserError` if no worker fits on any of them.

        A cluster that was joined may be growing, or have lost its last machine for now: it is given time.
        """
        machines, now = self._machines(), time.monotonic()
        self._room = self._needs.room(machines)
        if self._room:
            self._no_room_since = None
            return machines
        refusal = self._needs.refusal(machines)
        if self._ray is None or self._ray.address is None:
            raise refusal
        if self._no_room_since is None:
            self._no_room_since = now
            log.warning("%s; waiting %s for one to join", refusal.problem, _minutes(self.room_patience))
        elif now - self._no_room_since >= self.room_patience:
            raise refusal
        return machines

    def _fill(self) -> None:
        """As many actors as are wanted, whether or not there is room for them now."""
        import ray  # noqa: PLC0415

        assert self._task is not None
        # No restarts by Ray itself: the runner counts attempts, and a crash must be seen to be counted.
        remote = ray.remote(
            **self._needs.options, max_restarts=0, max_task_retries=0, max_concurrency=self._task.overlap
        )(RayWorker)
        for _ in range(self.workers - sum(seat.leaving is None for seat in self._seats)):
            seat = Seat(remote.remote(self._task, self._threads))
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
        if ended and self._heard.is_waiting:
            # Of a Ray that was started here nothing is asked at the end.
            self._heard.look(self._ray)
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._look_around()
            self._heard.look(self._ray)
            self._say_what_stands()
            self._looked = time.monotonic()
        return bool(ended)

    def _look_around(self) -> None:
        """Let go of machines that went, or are to go, and find room on others.

        Of a machine whose raylet alone has died, calls do not tell.
        """
        now = time.monotonic()
        machines = {machine.id: machine for machine in self._check_room()}
        for seat in [seat for seat in self._seats if seat.begun]:
            machine = machines.get(seat.machine)
            if machine is None:
                self._let_go(seat, "its machine was lost")
            elif machine.leaves:
                seat.leaving = seat.leaving or now
                if not seat.at or now - seat.leaving >= LEAVE_S:
                    self._let_go(seat, "its machine is to go")
        self._fill()

    def _let_go(self, seat: Seat, why: str) -> None:
        import ray  # noqa: PLC0415

        self._clear(seat)
        self._hand_back(seat, why)
        ray.kill(seat.actor)

    def _hand_out(self) -> None:
        """Give what waits to whoever has least to do; what died once goes first, and only to a worker with nothing.

        Nobody gets more than an even share: a worker that begins a little later shall find something to do.
        """
        assert self._task is not None
        careful = deque(spec for spec in self._waiting if spec.careful)
        others = deque(spec for spec in self._waiting if not spec.careful)
        begun = [seat for seat in self._seats if seat.begun and seat.leaving is None]
        for seat in begun:
            if careful and not seat.at:
                self._give(seat, careful.popleft())
        free = [seat for seat in begun if not seat.careful]
        if careful and free and len(free) == len(begun):
            # Someone must run empty to take it.
            free.remove(min(free, key=lambda seat: len(seat.at)))
        under_way = sum(len(seat.at) for seat in self._seats)
        sharers = max(len(begun), min(len(self._seats), self._room))
        share = math.ceil((len(self._waiting) + under_way) / max(1, sharers))
        while others and free:
            seat = min(free, key=lambda seat: len(seat.at))
            if len(seat.at) >= min(share, self._task.overlap):
                break
            self._give(seat, others.popleft())
        self._waiting = careful + others

    def _give(self, seat: Seat, spec: Spec) -> None:
        self._calls[seat.give(spec)] = seat

    def _take(self, reference: Any) -> None:
        """What came of a call: an outcome, a worker that has begun, or one that has died."""
        import ray  # noqa: PLC0415

        seat = self._calls.pop(reference)
        try:
            answer: Outcome | str = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if reference not in seat.at:
                raise
            spec, _ = seat.at.pop(reference)
            cause = f"the worker failed ({error.cause})"
            self._ended.append(Outcome(spec, kind="transient", cause=cause, trace=str(error)))
        except ray.exceptions.RayError as error:
            self._bury(seat, error)
        else:
            self._unbegun = 0
            if isinstance(answer, str):
                seat.machine = answer
            else:
                del seat.at[reference]
                self._ended.append(answer)

    def _bury(self, seat: Seat, error: Exception) -> None:
        """A worker that died, was killed for want of memory, or whose machine went: what it was at is to be retried."""
        import ray  # noqa: PLC0415

        self._clear(seat)
        reason, trace = cause_of(error)
        try:
            machines = self._machines()
        except BaseException:
            # Where Ray itself has died, nothing more can be asked of it.
            self._died(seat, f"the worker process died ({reason})", trace)
            raise
        lost = machine_went(error) or (seat.begun and seat.machine not in {machine.id for machine in machines})
        if lost:
            self._hand_back(seat, "its machine was lost")
        elif isinstance(error, ray.exceptions.ActorUnavailableError):
            # Nobody is left there who could say that the process died.
            self._hand_back(seat, "its worker is heard of no more", suspected=True)
        else:
            self._died(seat, f"the worker process died ({reason})", trace)
        # Whatever is left of it must not run on.
        ray.kill(seat.actor)
        if not seat.begun and not lost:
            self._unbegun += 1
            if self._unbegun >= _TRIES:
                raise UserError(
                    f"no worker process can begin ({reason})",
                    do="See that the same code and packages are on every machine of the cluster",
                )
        self._fill()

    def _clear(self, seat: Seat) -> None:
        """Nothing more is expected of it. What had ended before is not lost."""
        import ray  # noqa: PLC0415

        self._seats.remove(seat)
        calls = [reference for reference, whose in self._calls.items() if whose is seat]
        for reference in ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []:
            with contextlib.suppress(ray.exceptions.RayError):
                answer: Outcome | str = ray.get(reference)
                if isinstance(answer, Outcome):
                    self._ended.append(answer)
                    del seat.at[reference]
        for reference in calls:
            del self._calls[reference]

    def _hand_back(self, seat: Seat, why: str, *, suspected: bool = False) -> None:
        """What it was at goes to others, before all else: its machine's end is not the shards' doing.

        `suspected`: it may be; whoever meets that twice is made with care.
        """
        for spec, _ in seat.at.values():
            self._losses[spec] += 1
            if self._losses[spec] >= _LOSSES:
                self._ended.append(
                    Outcome(replace(spec, careful=True), kind="transient", cause=f"{why}, as often before")
                )
            else:
                log.warning("%s: %s: handed to another worker", spec.label, why)
                self._waiting.appendleft(replace(spec, careful=spec.careful or (suspected and self._losses[spec] > 1)))
        seat.at.clear()

    def _died(self, seat: Seat, cause: str, trace: str) -> None:
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
        if begun < self.workers:
            parts.append(f"{begun} of {self.workers} workers have begun, the others wait for room in the cluster")
        log.warning("%s: nothing has ended for %s: %s", self._task.name, _minutes(now - self._moved), "; ".join(parts))
        self._patience *= 2

    def close(self) -> None:
        import ray  # noqa: PLC0415

        if self._ray is not None and (self._shared or self._ray.address is not None):
            # A Ray that was started here goes with us. Whoever told us to end may have told its server too, and a
            # question to that would hang.
            with contextlib.suppress(RayLostError, UserError):
                self._machines()
                self._heard.look(self._ray)
                self._heard.forget(self._ray)
                for seat in self._seats if self._shared else ():
                    ray.kill(seat.actor)
        self._seats, self._calls = [], {}
        self._waiting.clear()
        self._ended.clear()
        self._session.close()
        self._ray = None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
