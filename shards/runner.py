"""Map a shard task over its specs: skip what is done, bound what is in flight, retry what may pass, quarantine what
cannot, and end with an error if anything is missing.

Where the work runs is an `Executor`'s business: `InProcess` here, Ray in `ray_executor.py`; both keep this contract.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol, TypeVar

from shards.errors import IncompleteError, ShardError, UserError
from shards.progress import Meter
from shards.publication import SupersededError
from shards.record import RECORDS, RecordName, ShardRecord, compact, damaged_shards, published_records
from shards.storage import Folder
from shards.task import ShardTask, Spec, Worker

log = logging.getLogger(__name__)

R = TypeVar("R")

FAILURES = "_failures"
_ATTEMPTS = 3
_ROOM = "Make room there and in $TMPDIR, then run the same command again"


@dataclass(frozen=True)
class Outcome:
    """How one attempt at one spec ended: with a record, or with an error of a kind."""

    spec: Spec
    record: ShardRecord | None = None
    kind: Literal["done", "user", "permanent", "transient"] = "done"
    cause: str = ""
    trace: str = ""
    error: UserError | None = None


class Executor(Protocol):
    """Runs attempts. Never holds more than `slots` specs at once, a number that is known once it was started.

    Where a worker process died, the outcome's spec is `careful`.
    """

    slots: int

    def once(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function where a worker would run, before any work is started, and return what it returns.

        What it takes to run there stays until `close`.
        """
        ...

    def start(self, task: ShardTask[Any]) -> None: ...

    def submit(self, spec: Spec) -> None: ...

    def wait(self) -> Outcome:
        """Block until one submitted spec has ended."""
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
            return Outcome(spec, record=self._opened().run(spec))
        except SupersededError as error:
            return Outcome(spec, record=error.record)
        except UserError as error:
            return Outcome(spec, kind="user", cause=str(error), error=error)
        except ShardError as error:
            return Outcome(spec, kind="permanent", cause=_one_line(error), trace=traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this shard's failure and is reported as such
            return _failed(spec, error)

    def _opened(self) -> Worker[Any]:
        with self._opening:
            if self._worker is None:
                self._worker = self._task.open()
            return self._worker

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


def _failed(spec: Spec, error: Exception) -> Outcome:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        # Every other shard would be made, and lost, in the same way.
        full = UserError(f"the disk is full ({_one_line(error)})", where=str(spec.folder), do=_ROOM)
        return Outcome(spec, kind="user", cause=str(full), error=full)
    cause = f"{type(error).__name__}: {_one_line(error)}"
    return Outcome(spec, kind="transient", cause=cause, trace=traceback.format_exc())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class InProcess:
    """One worker in this process: for tests, debugging, and machines without Ray.

    A task that overlaps shards has them run by threads that end with the process: an interrupt waits for none of them.
    """

    slots = 1

    def __init__(self) -> None:
        self._host: Host | None = None
        self._waiting: SimpleQueue[Spec | None] = SimpleQueue()
        self._ended: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def once(self, function: Callable[..., R], *arguments: Any) -> R:
        return function(*arguments)

    def start(self, task: ShardTask[Any]) -> None:
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

    def wait(self) -> Outcome:
        assert self._host is not None
        if not self._threads:
            spec = self._waiting.get()
            assert spec is not None
            return self._host.run(spec)
        ended = self._ended.get()
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


@dataclass
class _Failures:
    """The quarantine: one JSON file for each shard that failed, gone when the shard succeeds."""

    known: dict[Folder, set[str]] = field(default_factory=dict)

    def look(self, folder: Folder) -> None:
        if folder not in self.known:
            self.known[folder] = set(folder.child(FAILURES).names())

    def add(self, outcome: Outcome, attempts: int) -> None:
        spec = outcome.spec
        report = {"shard": spec.shard, "cause": outcome.cause, "attempts": attempts, "trace": outcome.trace}
        name = f"{spec.shard:05d}.json"
        spec.folder.child(FAILURES).publish(name, json.dumps(report, indent=1).encode())
        self.known[spec.folder].add(name)

    def clear(self, spec: Spec) -> None:
        name = f"{spec.shard:05d}.json"
        if name in self.known[spec.folder]:
            spec.folder.child(FAILURES).delete(name)
            self.known[spec.folder].discard(name)


def run_shards(task: ShardTask[Any], executor: Executor, *, attempts: int = _ATTEMPTS) -> Summary:
    """Bring every spec of `task` to a published record.

    Shards already published with the wanted fingerprint are skipped, unless their files are gone or have another size
    than recorded; a transient failure is tried `attempts` times in all; what fails for good is written to
    `_failures/NNNNN.json` and does not stop the others.

    Raises:
        UserError: a worker met something that only the user can mend; the run stops.
        IncompleteError: the run ended with shards missing; the message names them and why.
    """
    specs = list(task.specs())
    folders = list(dict.fromkeys(spec.folder for spec in specs))
    published = _Published()
    todo = [spec for spec in specs if not published.has(spec)]
    failures = _Failures()
    for folder in folders:
        failures.look(folder)
    for spec in specs:
        if published.has(spec):
            failures.clear(spec)
    failed: list[Outcome] = []
    summary = Summary(skipped=len(specs) - len(todo), remade=published.withdrawn)
    if todo:
        executor.start(task)
        try:
            with Meter(task.name, len(specs), unit="shards", done=summary.skipped) as meter:
                for outcome in _outcomes(todo, executor, failures, attempts):
                    if outcome.record is None:
                        failed.append(outcome)
                        meter.advance(0, note=f"{len(failed)} failed")
                    else:
                        summary.finished += 1
                        meter.advance(1, items=outcome.record.count)
        finally:
            executor.close()
    _add_up(specs, summary)
    if failed:
        causes = "; ".join(f"{outcome.spec.label}: {outcome.cause}" for outcome in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise IncompleteError(
            f"{task.name}: {len(failed)} of {len(specs)} shards are missing ({causes}{more}). Details are in "
            f"{FAILURES}/ beside the shards; the same command tries only the missing ones again"
        )
    for folder in folders:
        folder.sweep()
    return summary


def _add_up(specs: list[Spec], into: Summary) -> None:
    """Add every published record of the specs, old and new; also writes the derived manifests."""
    wanted = {(spec.folder, spec.shard) for spec in specs}
    for folder in {spec.folder for spec in specs}:
        for shard, record in compact(folder).items():
            if (folder, shard) in wanted:
                into.samples += record.count
                into.stats.update(record.stats)


class _Published:
    """What is done already: in each folder one listing of its records, and one of its files."""

    def __init__(self) -> None:
        self._names: dict[Folder, dict[int, RecordName]] = {}
        self._damaged: dict[Folder, dict[int, str]] = {}
        self.withdrawn: list[str] = []

    def has(self, spec: Spec) -> bool:
        """Whether the record that `spec` asks for is there; it is withdrawn if its files are not as it says."""
        folder, shard = spec.folder, spec.shard
        if folder not in self._names:
            self._names[folder] = published_records(folder)
            self._damaged[folder] = damaged_shards(folder, self._names[folder].values())
        name = self._names[folder].get(shard)
        if name is None or name.fingerprint != spec.fingerprint:
            return False
        if shard in self._damaged[folder]:
            folder.child(RECORDS).delete(str(name))
            del self._names[folder][shard]
            self.withdrawn.append(self._damaged[folder][shard])
            return False
        return True


def _outcomes(todo: list[Spec], executor: Executor, failures: _Failures, attempts: int) -> Iterator[Outcome]:
    """Final outcomes in order of completion; retries and the quarantine happen inside."""
    waiting = deque(todo)
    tries: Counter[Spec] = Counter()
    flying = 0
    while waiting or flying:
        while waiting and flying < executor.slots:
            executor.submit(waiting.popleft())
            flying += 1
        outcome = executor.wait()
        flying -= 1
        spec = outcome.spec
        tries[spec] += 1
        if outcome.record is not None:
            failures.clear(spec)
            yield outcome
        elif outcome.error is not None:
            raise outcome.error
        elif outcome.kind == "transient" and tries[spec] < attempts:
            log.warning("%s: attempt %d failed (%s), trying again", spec.label, tries[spec], outcome.cause)
            waiting.append(spec)
        else:
            failures.add(outcome, tries[spec])
            yield outcome
