"""A checkpoint when no step says so: minutes have gone by, or the run is asked to end (Ctrl-C, SIGTERM).

Processes of one run must agree on the step. Each says after every step what it wants, and all act on what was said
after the step before: nobody waits for a step that has just begun on a GPU.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from distill.training.monitor import Figures
from distill.training.ranks import Ranks
from shards import outages

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_S = 1.0


class Interrupted(KeyboardInterrupt):
    """The run ended early because it was asked to, its checkpoint on disk. `signal`: which one asked."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class AtOnce(KeyboardInterrupt):
    """The run was asked to end once more by the same `signal`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


class Wanted(NamedTuple):
    """What all processes do after a step: write a checkpoint; then end."""

    checkpoint: bool = False
    end: bool = False


class Signals:
    """Use as a context manager, which holds SIGINT and SIGTERM back meanwhile.

    The first one is kept as `number` and handed to `then`; the same again raises `AtOnce`. A signal that is
    ignored stays so; outside the main thread none is caught. `speaks`: whether to say what the first one does. After it
    nobody waits for a store that is away: who would raises `KeyboardInterrupt`.
    """

    def __init__(self, *, speaks: bool, then: Callable[[int], object] = int) -> None:
        self._speaks, self._then = speaks, then
        self._before: dict[int, Any] = {}
        self.number = 0
        self.at_once = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: what was there is not Python's, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        outages.wait_again()

    def _asked(self, number: int, _: FrameType | None) -> None:
        outages.wait_no_more()
        if self.number == number:
            self.at_once = True
            raise AtOnce(number)
        if not self.number:
            if self._speaks:
                # Not print: a signal may have come in the middle of one.
                os.write(2, b"clipstill: ending after this step, with a checkpoint (once more: at once, without)\n")
            self._then(number)
        self.number = number


class Interrupts(Signals):
    """As `Signals`, around the steps; tells after each what is wanted.

    `minutes` without a checkpoint make one due, 0: never. `asked`: a file that asks as a signal does once it is there,
    by the signal's number in it; where the processes are others' than the one that the user sees.
    """

    def __init__(self, ranks: Ranks, minutes: float, asked: Path | None = None) -> None:
        super().__init__(speaks=ranks.first)
        self._ranks, self._seconds = ranks, 60 * minutes
        self._file = asked if ranks.first else None
        self._looked = self._kept = time.monotonic()
        self._said: Figures | None = None

    def __enter__(self) -> Interrupts:
        self._kept = time.monotonic()
        super().__enter__()
        return self

    def kept(self) -> None:
        """Say that a checkpoint was begun."""
        self._kept = time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        # A folder that machines share is slow to look into.
        if self._file is not None and now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            with contextlib.suppress(FileNotFoundError):
                self.number = self.number or int(self._file.read_text())

    def wanted(self, step: int) -> Wanted:
        """To be called by all processes after every step, with its number."""
        self._look()
        due = 0 < self._seconds <= time.monotonic() - self._kept
        if due:
            self.kept()
        if self._ranks.size == 1:
            return Wanted(due or self.number > 0, self.number > 0)
        numbers = {"checkpoint": float(due and self._ranks.first), "signal": float(self.number)}
        told = self._ranks.most({name: torch.tensor(value) for name, value in numbers.items()})
        before, self._said = self._said, Figures(step, told)
        if before is None:
            return Wanted()
        heard = before.numbers()
        # Of a signal that another process got the others know this way.
        self.number = self.number or int(heard["signal"])
        return Wanted(heard["checkpoint"] > 0 or heard["signal"] > 0, heard["signal"] > 0)
