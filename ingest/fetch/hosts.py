"""Who is next: requests wait at their hosts, in order, for a connection and for the host's pace."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_BURST_S = 0.25
"""Of requests at the host's pace may come at once after a pause."""


@dataclass(eq=False, slots=True)
class _Host(Generic[T]):
    waiting: deque[T] = field(default_factory=deque)
    active: int = 0
    paced: float = 0.0
    """When, at an even pace, the next request would be due."""
    rests: bool = False


class HostQueues(Generic[T]):
    """Requests by host: at most `per_host` of each are under way, at most `rate` of each begin a second (0: any)."""

    def __init__(self, per_host: int, rate: float) -> None:
        self._per_host = per_host
        self._gap = 1 / rate if rate else 0.0
        self._slack = max(1.0, rate * _BURST_S) * self._gap - self._gap
        self._hosts: dict[str, _Host[T]] = {}
        # Those with something waiting and room for it, the next one first; and those that rest, by when that ends.
        self._ready: dict[str, None] = {}
        self._resting: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """How many hosts are known."""
        return len(self._hosts)

    def add(self, name: str, request: T, now: float) -> None:
        """Queue a request at the host `name`."""
        host = self._hosts.setdefault(name, _Host())
        host.waiting.append(request)
        self._update(name, host, now)

    def next(self, now: float) -> T | None:
        """The next request that may begin, if any; `ended` is to be told when it did."""
        while self._resting and self._resting[0][0] <= now:
            _, name = heapq.heappop(self._resting)
            self._hosts[name].rests = False
            self._update(name, self._hosts[name], now)
        if not self._ready:
            return None
        name = next(iter(self._ready))
        del self._ready[name]
        host = self._hosts[name]
        request = host.waiting.popleft()
        host.active += 1
        host.paced = max(host.paced, now) + self._gap
        self._update(name, host, now)
        return request

    def ended(self, name: str, now: float) -> None:
        """A request of the host is over."""
        host = self._hosts[name]
        host.active -= 1
        self._update(name, host, now)

    @property
    def due(self) -> float | None:
        """When `next` may have something though nothing ended, on the caller's clock."""
        return self._resting[0][0] if self._resting else None

    def drop(self, matches: Callable[[T], bool]) -> int:
        """Take those that match out of the queues; how many they were."""
        dropped = 0
        for name, host in list(self._hosts.items()):
            kept = deque(request for request in host.waiting if not matches(request))
            dropped += len(host.waiting) - len(kept)
            host.waiting = kept
            if not kept:
                self._ready.pop(name, None)
                if not host.active and not host.rests:
                    del self._hosts[name]
        return dropped

    def _update(self, name: str, host: _Host[T], now: float) -> None:
        """After a change: a host is ready, full, at rest, or forgotten."""
        rest = host.paced - self._slack
        if not host.waiting and not host.active and host.paced <= now and not host.rests:
            del self._hosts[name]
        elif host.waiting and host.active < self._per_host and rest <= now:
            self._ready[name] = None
        elif self._gap and not host.rests and (host.waiting or not host.active):
            # Wakes it up, or forgets it.
            until = rest if host.waiting else host.paced
            if until > now:
                host.rests = True
                heapq.heappush(self._resting, (until, name))
