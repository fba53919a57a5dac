"""The time, CPU and memory of a command with every process it starts, wherever those end up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TICKS = os.sysconf("SC_CLK_TCK")
_EVERY = 0.2
"""Seconds between looks. A process's CPU after the last look at it is lost: a few ms at the end of each."""
_PSS_EVERY = 5
"""Every so many looks the memory's fair shares are added up, which costs the kernel milliseconds a process."""
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Usage:
    """What a command and its processes used.

    `seconds` of wall time from `started` (since 1970); `timeline` rows are (since 1970, CPU seconds of all processes
    so far, CPU seconds of the watched process so far). `pss`: the highest sum, in bytes, of the memory of all
    processes at one moment, shared pages counted once. `largest`: the highest resident memory of one process.
    """

    started: float
    seconds: float
    timeline: np.ndarray
    pss: int
    largest: int
    status: int

    def cpu(self, start: float | None = None, end: float | None = None) -> float:
        """CPU seconds between two moments (since 1970), the whole run unless given."""
        return self._between(1, start, end)

    def watched_cpu(self, start: float | None = None, end: float | None = None) -> float:
        """CPU seconds of the watched process between two moments."""
        return self._between(2, start, end)

    def _between(self, column: int, start: float | None, end: float | None) -> float:
        moments, values = self.timeline[:, 0], self.timeline[:, column]
        low, high = moments[0] if start is None else start, moments[-1] if end is None else end
        return float(np.interp(high, moments, values) - np.interp(low, moments, values))


def measured(command: Sequence[str], *, env: Mapping[str, str], log: Path, watch: int, limit: float) -> Usage:
    """Run a command to its end; its output goes to `log`. `watch` is a process that runs beside it.

    It is killed, with all its processes, after `limit` seconds. Not for use by several threads.
    """
    # Processes whose parent dies become children of this one, so none is lost from sight.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watcher = _Watcher(watch)
    with log.open("wb") as output:
        started, clock = time.time(), time.monotonic()
        process = subprocess.Popen(command, env=dict(env), stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None and time.monotonic() - clock < limit:
                watcher.look()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_EVERY)
            seconds = time.monotonic() - clock
            watcher.look()
        finally:
            watcher.end(process.pid)
            status = process.wait()
    return Usage(started, seconds, np.array(watcher.timeline), watcher.pss, watcher.largest, status)


class _Watcher:
    def __init__(self, watch: int) -> None:
        self._before = set(_numbers())
        self._watch = watch
        self._cpu: dict[int, float] = {}
        self.timeline: list[tuple[float, float, float]] = []
        self.pss = self.largest = 0

    def look(self) -> None:
        now = time.time()
        family = self._family()
        for pid, cpu in family.items():
            self._cpu[pid] = cpu
            self.largest = max(self.largest, _field(pid, "status", "VmHWM:"))
        # Every other process's shares are what a sum of resident memory would count again and again.
        if len(self.timeline) % _PSS_EVERY == 0:
            self.pss = max(self.pss, sum(_field(pid, "smaps_rollup", "Pss:") for pid in family))
        watched = _stat(self._watch)
        self.timeline.append((now, sum(self._cpu.values()), watched[1] if watched else 0.0))

    def _family(self) -> dict[int, float]:
        """The CPU seconds of every process that descends from this one and is newer than the watcher."""
        stats = {pid: stat for pid in _numbers() if pid not in self._before and (stat := _stat(pid))}
        family: dict[int, float] = {}
        parents = {os.getpid()}
        while parents:
            parents = {pid for pid, (parent, _) in stats.items() if parent in parents}
            family |= {pid: stats[pid][1] for pid in parents}
        return family

    def end(self, root: int) -> None:
        """Wait for what the command has left running, killing what is still there; the root is not reaped."""
        patience = time.monotonic() + 5
        while family := self._family():
            for pid in set(family) - {root}:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if set(family) <= {root} and _is_zombie(root):
                return
            if time.monotonic() > patience:
                for pid in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


def _numbers() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 - called often


def _stat(pid: int) -> tuple[int, float] | None:
    """A process's parent and CPU seconds, None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold anything.
    values = text[text.rindex(")") + 2 :].split()
    return int(values[1]), (int(values[11]) + int(values[12])) / _TICKS


def _is_zombie(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text[text.rindex(")") + 2] == "Z"


def _field(pid: int, file: str, name: str) -> int:
    """A size in bytes from a process's file, 0 when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0
    at = text.find(name)
    return int(text[at + len(name) :].split(maxsplit=1)[0]) * 1024 if at >= 0 else 0
