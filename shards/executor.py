"""Where the specs of a task run: what a runner asks of an executor, and the one that has them run in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal, Protocol, TypeVar

from shards.errors import ShardError, UserError, disk_is_full, one_line
from shards.outages import StoreAwayError
from shards.publication import SupersededError
from shards.task import BusyWorker, ShardTask, Spec, Worker

log = logging.getLogger(__name__)

R = TypeVar("R")

_SILENT_S = 2.0
"""So long the end of other shards is waited for without a word."""


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
        error = sys.exception()
        if not isinstance(error, KeyboardInterrupt | GeneratorExit):
            # What they are at would be written when others think that it is over.
            until = time.monotonic() + _SILENT_S
            for thread in self._threads:
                thread.join(max(0.0, until - time.monotonic()))
            if any(thread.is_alive() for thread in self._threads):
                log.warning("%s. What was begun beside it is finished first", one_line(str(error)))
            for thread in self._threads:
                thread.join()
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
