"""Map a shard task over its specs: skip what is done, bound what is in flight, retry what may pass, quarantine what
cannot, and end with an error if anything is missing.

Where the work runs is an `Executor`'s business: `InProcess` here, Ray in `ray_executor.py`; both keep this contract.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol, TypeVar

from shards.errors import IncompleteError, ShardError, UserError, disk_is_full, one_line
from shards.failures import FAILURES, Failures
from shards.outages import StoreAwayError
from shards.progress import Meter
from shards.publication import SupersededError
from shards.record import compact
from shards.sound import PublishedShards
from shards.storage import Folder
from shards.task import BusyWorker, GrowingTask, ShardTask, Spec, Worker

log = logging.getLogger(__name__)

R = TypeVar("R")

_ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """How one attempt at one spec ended: with what the worker returned, or with an error of a kind."""

    spec: Spec
    result: Any = None
    kind: Literal["done", "user", "permanent", "transient"] = "done"
    cause: str = ""
    trace: str = ""
    error: UserError | None = None
    key: str | None = None


class Executor(Protocol):
    """Runs attempts, in at most `workers` processes. Never holds more than `slots` specs at once, a number that is
    known once it was started.

    Where a worker process died, the outcome's spec is `careful`.
    """

    workers: int
    slots: int

    def once(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function where a worker would run, before any work is started, and return what it returns.

        What it takes to run there stays until `close`.
        """
        ...

    def start(self, task: ShardTask[Any]) -> None: ...

    def submit(self, spec: Spec) -> None: ...

    def wait(self, most: float | None = None) -> Outcome | None:
        """See to it that what was submitted begins where there is room, and block until one spec has ended.

        None if none has within `most` seconds; an executor that runs specs in the calling thread takes what that takes.
        """
        ...

    def close(self) -> None: ...


class Host:
    """Where a task's worker lives: opened on its first spec, so that a failure to open is an outcome like any other.

    Up to `task.overlap` threads may run specs at a time.
    """

    def __init__(self, task: ShardTask[Any]) -> None:
        self._task = task
        self._worker: Worker[Any] | None = None
        self._opening = threading.Lock()

    def run(self, spec: Spec) -> Outcome:
        """Run one spec and sort what came of it."""
        try:
            return Outcome(spec, result=self._opened().run(spec))
        except SupersededError as error:
            return Outcome(spec, result=error.record)
        except StoreAwayError as error:
            named = error.at(f"shard {spec.label}")
            return Outcome(spec, kind="user", cause=str(named), error=named)
        except UserError as error:
            return Outcome(spec, kind="user", cause=str(error), error=error)
        except ShardError as error:
            return Outcome(
                spec, kind="permanent", cause=one_line(str(error)), trace=traceback.format_exc(), key=error.key
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this shard's failure and is reported as such
            return _failed(spec, error)

    def _opened(self) -> Worker[Any]:
        with self._opening:
            if self._worker is None:
                self._worker = self._task.open()
            return self._worker

    @property
    def busy_seconds(self) -> float:
        """How long an accelerator has worked here, 0 where the worker does not tell."""
        return self._worker.busy_seconds if isinstance(self._worker, BusyWorker) else 0.0

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


def _failed(spec: Spec, error: Exception) -> Outcome:
    full = disk_is_full(error, str(spec.folder))
    if full is not None:
        # Every other shard would be made, and lost, in the same way.
        return Outcome(spec, kind="user", cause=str(full), error=full)
    cause = f"{type(error).__name__}: {one_line(str(error))}"
    return Outcome(spec, kind="transient", cause=cause, trace=traceback.format_exc())


class InProcess:
    """One worker in this process: for tests, debugging, and machines without Ray.

    A task that overlaps shards has them run by threads that end with the process: an interrupt waits for none of them.
    `why`: what to say of it once there is something to do.
    """

    workers = slots = 1

    def __init__(self, why: str = "") -> None:
        self._why = why
        self._host: Host | None = None
        self._waiting: SimpleQueue[Spec | None] = SimpleQueue()
        self._ended: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def once(self, function: Callable[..., R], *arguments: Any) -> R:
        return function(*arguments)

    def start(self, task: ShardTask[Any]) -> None:
        if self._why:
            log.info("%s: %s", task.name, self._why)
            self._why = ""
        host = self._host = Host(task)
        self.slots = task.overlap
        self._waiting, self._ended = SimpleQueue(), SimpleQueue()
        if task.overlap > 1:
            work = partial(_work, host, self._waiting, self._ended)
            self._threads = [threading.Thread(target=work, daemon=True) for _ in range(task.overlap)]
            for thread in self._threads:
                thread.start()

    def submit(self, spec: Spec) -> None:
        self._waiting.put(spec)

    def wait(self, most: float | None = None) -> Outcome | None:
        assert self._host is not None
        if not self._threads:
            spec = self._waiting.get()
            assert spec is not None
            return self._host.run(spec)
        try:
            ended = self._ended.get(timeout=most)
        except Empty:
            return None
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def close(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                self._waiting.get_nowait()
        for _ in self._threads:
            self._waiting.put(None)
        self._threads = []
        if self._host is not None:
            self._host.close()
        self._host = None


def _work(host: Host, waiting: SimpleQueue[Spec | None], ended: SimpleQueue[Outcome | BaseException]) -> None:
    while (spec := waiting.get()) is not None:
        try:
            ended.put(host.run(spec))
        except BaseException as error:  # noqa: BLE001 - what would end this process is raised where it is waited for
            ended.put(error)


def threads_of(executor: Executor) -> int:
    """How many shards that keep a core busy a worker may be at: all cores have one if this process does the work."""
    return (os.cpu_count() or 1) if isinstance(executor, InProcess) else 1


@dataclass
class Summary:
    """What a run did: shards found done, done now, and the sum of every record's `stats` (old and new).

    `remade` says of each shard that was done once, and had to be done again, what was wrong with its files.
    """

    skipped: int = 0
    finished: int = 0
    remade: list[str] = field(default_factory=list)
    samples: int = 0
    stats: Counter[str] = field(default_factory=Counter)


def run_shards(task: ShardTask[Any], executor: Executor, *, attempts: int = _ATTEMPTS) -> Summary:
    """Bring every spec of `task` to a published record.

    Shards already published with the wanted fingerprint are skipped, unless their files are gone or have another size
    than recorded; a transient failure is tried `attempts` times in all; what fails for good is written to
    `_failures/NNNNN.json` and does not stop the others.

    Raises:
        UserError: a worker met something that only the user can mend; the run stops.
        IncompleteError: the run ended with shards missing; the message names them and why.
    """
    work = _Work(task, attempts, in_process=isinstance(executor, InProcess))
    summary = Summary()
    try:
        with Meter(task.name, work.total, unit="shards") as meter:
            for outcome in _outcomes(work, task, executor, meter):
                if outcome.result is None:
                    work.failed.append(outcome)
                    work.tell(meter)
                else:
                    summary.finished += 1
                    work.tell(meter, 1, outcome.result.count)
    finally:
        work.close()
    summary.skipped, summary.remade = work.skipped, work.published.withdrawn
    _add_up(work, summary)
    if work.failed:
        causes = "; ".join(f"{outcome.spec.label}: {outcome.cause}" for outcome in work.failed[:5])
        more = f" and {len(work.failed) - 5} more" if len(work.failed) > 5 else ""
        raise IncompleteError(
            f"{task.name}: {len(work.failed)} of {work.total} shards are missing ({causes}{more}). Details are in "
            f"{FAILURES}/ beside the shards; the same command tries only the missing ones again"
        )
    for folder in work.wanted:
        folder.sweep()
    return summary


class _Work:
    """The specs of a task as they come, but for those that are done, then those that are to be tried again.

    A task that grows is never looked at whole. Where finding specs ends in a `UserError`, `broken` has it, and the work
    is over all the same: what is in flight shall end first.
    """

    def __init__(self, task: ShardTask[Any], attempts: int, *, in_process: bool) -> None:
        self.attempts = attempts
        self._growing = task if isinstance(task, GrowingTask) else None
        known = [] if self._growing else list(task.specs())
        self._known = len(known)
        self._specs: Iterator[Spec | None] = task.specs() if self._growing else iter(known)
        self.published = PublishedShards()
        self._more = True
        self.again: deque[Spec] = deque()
        self.wanted: dict[Folder, set[int]] = {}
        self.skipped = 0
        self.failed: list[Outcome] = []
        self.failures = Failures(in_process)
        self.broken: UserError | None = None

    @property
    def total(self) -> int:
        """How many specs there are, as far as is known."""
        return self._growing.outlook()[0] if self._growing else self._known

    @property
    def over(self) -> bool:
        """Whether none is left, as far as is known."""
        return not self._more and not self.again

    def next(self) -> Spec | None:
        """The next spec that is to be run; None if there is none now."""
        # What is new comes first: what has failed may need time to pass.
        try:
            while self._more and (spec := next(self._specs)) is not None:
                if not self._is_done(spec):
                    return replace(spec, careful=True) if self.failures.suspected(spec) else spec
                self.failures.clear(spec)
                self.skipped += 1
        except StopIteration:
            self._more = False
        except UserError as error:
            self._more, self.broken = False, error
        return None if self._more or not self.again else self.again.popleft()

    def _is_done(self, spec: Spec) -> bool:
        if spec.folder not in self.wanted:
            self.wanted[spec.folder] = set()
            self.failures.look(spec.folder)
        self.wanted[spec.folder].add(spec.shard)
        return self.published.has(spec.folder, spec.shard, spec.fingerprint)

    def tell(self, meter: Meter, units: int = 0, items: int = 0) -> None:
        """Tell the meter what is done and how much there is, and whatever else is to be known."""
        total, note = self._growing.outlook() if self._growing else (self._known, "")
        failed = f"{len(self.failed)} failed" if self.failed else ""
        meter.expect(total, self.skipped)
        meter.advance(units, items, note=", ".join(filter(None, [failed, note])))

    def close(self) -> None:
        """Nothing more is wanted."""
        if isinstance(self._specs, Generator):
            self._specs.close()


def _add_up(work: _Work, into: Summary) -> None:
    """Add every published record of the specs, old and new; also writes the derived manifests."""
    for folder, shards in work.wanted.items():
        for shard, record in (work.published.unchanged(folder) or compact(folder)).items():
            if shard in shards:
                into.samples += record.count
                into.stats.update(record.stats)


def _outcomes(work: _Work, task: ShardTask[Any], executor: Executor, meter: Meter) -> Iterator[Outcome]:
    """Final outcomes in order of completion; retries and the quarantine happen inside.

    The executor is started for the first spec that is to be run, and closed in the end.
    """
    tries: Counter[Spec] = Counter()
    flying: list[Spec] = []
    started = False
    try:
        while flying or not work.over:
            asks = not work.over and (not started or len(flying) < executor.slots)
            if asks:
                spec = work.next()
                if spec is not None:
                    if not started:
                        work.published.forget()
                        executor.start(task)
                        started = True
                    work.failures.begin(spec)
                    flying.append(spec)
                    executor.submit(spec)
                elif not work.over:
                    work.tell(meter)
            if not flying:
                continue
            # The next spec may be long in coming: what is known begins, and what has ended is seen, before it is asked
            # for. It is there that time passes then, not here too.
            outcome = executor.wait(0.0 if asks else None)
            if outcome is None:
                continue
            flying.remove(outcome.spec)
            work.failures.let_go(outcome.spec)
            tries[outcome.spec] += 1
            if _is_final(outcome, tries[outcome.spec], work):
                yield outcome
    finally:
        if started:
            executor.close()
        for spec in flying:
            work.failures.let_go(spec)
    if work.broken is not None:
        raise work.broken


def _is_final(outcome: Outcome, tried: int, work: _Work) -> bool:
    """Whether the outcome of the attempt number `tried` stands; else its spec is to be tried again."""
    if outcome.result is not None:
        work.failures.clear(outcome.spec)
        return True
    if outcome.error is not None:
        raise outcome.error
    if outcome.kind == "transient" and tried < work.attempts:
        said = f"{outcome.spec.label}: attempt {tried} failed ({outcome.cause}), trying again"
        log.warning("%s", said, extra=_facts(outcome, tried))
        work.again.append(outcome.spec)
        return False
    work.failures.add(outcome.spec, outcome.cause, tried, outcome.trace, outcome.key)
    # Said to people at the end of the run, with the others.
    log.debug("%s: failed for good (%s)", outcome.spec.label, outcome.cause, extra=_facts(outcome, tried))
    return True


def _facts(outcome: Outcome, tried: int) -> dict[str, Any]:
    """What a log of JSON lines has beside the message."""
    spec = outcome.spec
    facts = {"folder": spec.folder.url, "shard": spec.shard, "key": outcome.key, "attempt": tried}
    return {"facts": {**facts, "cause": outcome.cause}}
