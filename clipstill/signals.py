"""What Ctrl-C, SIGTERM and SIGHUP do to a command: an interrupt, once no module is half imported."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

_AGAIN_S = 0.05
_PATIENCE_S = 30.0
"""How long an import is waited for: one may hang on a network's disk."""
_IMPORTS = "<frozen importlib._bootstrap>"


@contextlib.contextmanager
def told_to_end(told: list[int]) -> Iterator[None]:
    """SIGTERM (`kill`, `timeout`, a scheduler) and SIGHUP (the terminal is gone) end a command as Ctrl-C does.

    Which of them it was is added to `told`: the exception may come out of Ray as another one. One that comes while a
    module is imported waits until it is: libraries that try optional modules swallow whatever an import raises, and
    what they left half imported would be the command's end later, under another name.
    """
    first: dict[int, float] = {}
    waiting: set[int] = set()
    over, main = threading.Event(), threading.main_thread().ident or 0

    def end(number: int, frame: FrameType | None) -> None:
        since = first.setdefault(number, time.monotonic())
        if _importing(frame) and time.monotonic() - since < _PATIENCE_S:
            if number not in waiting:
                waiting.add(number)
                _thread.start_new_thread(again, (number,))
            return
        if number != signal.SIGINT:
            # Whoever means a group of processes often sends it twice; the second must not disturb the clearing up.
            signal.signal(number, signal.SIG_IGN)
            told.append(number)
        if (outages := sys.modules.get("shards.outages")) is not None:
            outages.wait_no_more()
        raise KeyboardInterrupt

    def again(number: int) -> None:
        if not over.wait(_AGAIN_S):
            waiting.discard(number)
            # Not `interrupt_main`, which wakes nobody who waits.
            signal.pthread_kill(main, number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) in {signal.SIG_DFL, signal.default_int_handler}:  # `nohup` has SIGHUP ignored
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False
