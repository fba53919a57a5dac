"""Look host names up ahead of the requests, through the system's resolver (hosts file, search domains, time-outs).

Lists from the web name a new host every few rows. For some names no server ever answers, and such a lookup holds its
thread for ten seconds or more. So there are many threads, and two limits. One is on all lookups under way. The other is
on young ones, which may still be answered: it keeps us from asking a weak resolver for everything at once.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from ingest.fetch.limits import CRAMPED_WAIT_S, MOST_LOOKUPS, check_patience, is_out_of_files

_YOUNG = 64
"""Lookups under way that are no older than an answer usually takes, with a margin: a resolver is asked for so many."""
_MARGIN = 4
_YOUNG_S = (0.25, 3.0)
"""The least and the most that counts as young. Two queries for each of 64 names are 2.6 s where one takes 20 ms."""
_KEPT_S, _GONE_S, _SILENT_S = 120.0, 600.0, 120.0
"""How long an address is known, and that a name does not exist, and that nobody answers for it."""
_KNOWN = 50_000

_NO_SUCH_NAME = {socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY}

NO_ADDRESS = "the host's name has no address"
NO_ANSWER = "the resolver gives no answer about the host's name"


@dataclass(frozen=True, slots=True)
class Name:
    """What is known of a name: its addresses in the order to try them, or (where there are none) why not.

    `until` is when it should be asked for again, on `time.monotonic`.
    """

    addresses: tuple[str, ...]
    failure: str | None
    until: float


class Names:
    """Looks names up on threads of its own; all methods are for one thread, which `wake` tells of news.

    `patience` is how many seconds a lookup may take, whatever the resolver's own time-outs; `files` how many
    descriptors lookups may hold, one each.
    """

    def __init__(self, wake: Callable[[], None], patience: float, files: int = MOST_LOOKUPS) -> None:
        self._wake, self._patience = wake, patience
        self._most = max(1, min(MOST_LOOKUPS, files))
        self._known: OrderedDict[str, Name] = OrderedDict()
        self._waiting: deque[str] = deque()
        # By name, the oldest first: when the lookup began. Those given up stay until their thread is free again.
        self._running: dict[str, float] = {}
        self._given_up: set[str] = set()
        self._todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._done: deque[tuple[str, tuple[str, ...], str | None, bool]] = deque()
        self._threads = 0
        self._cramped: float | None = None
        self._usual = _YOUNG_S[1] / _MARGIN

    def get(self, host: str) -> Name | None:
        """What is known of `host`; None if it must be asked for."""
        name = self._known.get(host)
        return name if name is not None and name.until > time.monotonic() else None

    def ask(self, host: str) -> None:
        """Have `host` looked up; `answered` will name it. Not to be asked twice before that."""
        if host in self._given_up:
            # Its thread hangs: whether that is over is known when it comes back.
            self._given_up.discard(host)
            return
        self._waiting.append(host)

    def answered(self) -> list[tuple[str, Name]]:
        """What has become known since the last call; also begins the lookups that there is room for."""
        now = time.monotonic()
        news = []
        while self._done:
            host, addresses, failure, no_room = self._done.popleft()
            began = self._running.pop(host)
            given_up = host in self._given_up
            self._given_up.discard(host)
            if no_room and not given_up:
                # This machine had no file to spare, which says nothing of the name.
                self._most = max(1, min(self._most, len(self._running)))
                self._waiting.append(host)
                self._cramped = self._cramped or now
                check_patience(now - self._cramped)
                continue
            self._cramped = None
            if failure is None or failure == NO_ADDRESS:
                self._usual += 0.1 * (min(now - began, _YOUNG_S[1]) - self._usual)
            kept = _KEPT_S if failure is None else _GONE_S if failure == NO_ADDRESS else _SILENT_S
            name = self._keep(host, Name(addresses, failure, now + kept))
            if not given_up:
                news.append((host, name))
        for host, began in self._running.items():
            if began + self._patience > now:
                break
            if host not in self._given_up:
                self._given_up.add(host)
                news.append((host, self._keep(host, Name((), NO_ANSWER, now + _SILENT_S))))
        self._begin(now)
        return news

    @property
    def due(self) -> float | None:
        """When to call `answered` though there is no news, on `time.monotonic`; None: no need to."""
        hanging = (began + self._patience for host, began in self._running.items() if host not in self._given_up)
        due = next(hanging, None)
        if self._waiting and len(self._running) < self._most:
            began = next(islice(reversed(self._running.values()), _YOUNG - 1, None), None)
            due = due if began is None else min(began + self._young, due or math.inf)
        return due

    def forget_failures(self) -> None:
        """Ask again for the names that had no address or no answer."""
        for host in [host for host, name in self._known.items() if name.failure is not None]:
            del self._known[host]

    def close(self) -> None:
        """Let the threads end; those that hang in a lookup follow when it does."""
        self._waiting.clear()
        for _ in range(self._threads):
            self._todo.put(None)

    @property
    def _young(self) -> float:
        return min(max(_YOUNG_S[0], _MARGIN * self._usual), _YOUNG_S[1])

    def _begin(self, now: float) -> None:
        if not self._waiting:
            return
        young = 0
        for began in reversed(self._running.values()):
            if now - began > self._young or young >= _YOUNG:
                break
            young += 1
        while self._waiting and young < _YOUNG and len(self._running) < self._most:
            if len(self._running) >= self._threads and not self._start_thread():
                return
            host = self._waiting.popleft()
            self._running[host] = now
            self._todo.put(host)
            young += 1

    def _start_thread(self) -> bool:
        # Not Python's pool: it would wait for hanging lookups when the process ends.
        thread = threading.Thread(target=self._look_up, name="lookup", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No more threads on this machine: those that there are must do.
            if not self._threads:
                raise
            self._most = self._threads
            return False
        self._threads += 1
        return True

    def _look_up(self) -> None:
        while (host := self._todo.get()) is not None:
            addresses, failure, no_room = look_up(host)
            if no_room:
                time.sleep(CRAMPED_WAIT_S)
            self._done.append((host, addresses, failure, no_room))
            self._wake()

    def _keep(self, host: str, name: Name) -> Name:
        self._known[host] = name
        self._known.move_to_end(host)
        while len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return name


def look_up(host: str) -> tuple[tuple[str, ...], str | None, bool]:
    """The addresses of an ASCII name, or why there are none, and whether only this machine's want of files is why."""
    try:
        # Bytes, for text would be checked by IDNA's rules, which many a host in use does not keep.
        found = socket.getaddrinfo(host.encode(), None, type=socket.SOCK_STREAM, family=_families())
    except socket.gaierror as error:
        return (), NO_ADDRESS if error.errno in _NO_SUCH_NAME else NO_ANSWER, is_out_of_files()
    except OSError:
        return (), NO_ANSWER, is_out_of_files()
    return tuple(dict.fromkeys(str(place[4][0]) for place in found)), None, False


@functools.cache
def _families() -> int:
    # As curl has it: a machine without IPv6 asks for nothing that it cannot use.
    with contextlib.suppress(OSError):
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
        return socket.AF_UNSPEC
    return socket.AF_INET
