"""A circuit breaker for each place: addresses that accept no connection are avoided for a while.

A firewall that swallows packets would otherwise cost each row behind it the whole connect time-out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_ENOUGH = 3
"""Time-outs, one after the other, until a place is avoided."""
_FIRST_S, _LAST_S = 30.0, 600.0
"""After so long one row tries it again; each time without an answer the wait is twice as long."""
_KEPT = 20_000


@dataclass(slots=True)
class _Misses:
    count: int = 0
    last: float = 0.0
    until: float = 0.0
    wait: float = _FIRST_S


class CircuitBreakers:
    """Which places (addresses with a port) have taken no connection lately; `patience` is a connect time-out.

    A time-out counts only if a connection to some other place was made meanwhile, so that an outage of our own is no
    fault of theirs, and only if it began after the last one that counted: many rows at once are one try.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._misses: OrderedDict[str, _Misses] = OrderedDict()
        self._heard = float("-inf")

    def refuses(self, place: str, now: float) -> bool:
        """Whether a request to `place` need not be tried. Now and then it should be: then the answer is no, once."""
        misses = self._misses.get(place)
        if misses is None or misses.count < _ENOUGH:
            return False
        if now < misses.until:
            return True
        misses.until = now + 2 * self._patience
        return False

    def connected(self, place: str, now: float) -> None:
        """A connection to `place` was made."""
        self._heard = now
        self._misses.pop(place, None)

    def timed_out(self, place: str, began: float, now: float) -> None:
        """A try that began at `began` led to no connection in time."""
        if self._heard < began:
            return
        misses = self._misses.setdefault(place, _Misses())
        self._misses.move_to_end(place)
        if misses.last > began:
            return
        misses.count, misses.last = misses.count + 1, now
        if misses.count >= _ENOUGH:
            misses.until = now + misses.wait
            misses.wait = min(2 * misses.wait, _LAST_S)
        if len(self._misses) > _KEPT:
            self._misses.popitem(last=False)

    def forget(self) -> None:
        """Try all of them again."""
        self._misses.clear()
