"""Our own engine: one thread fetches, others decode, resize and encode, for as many callers as there are.

    requests → Fetcher (one thread, curl) → ImageProcessor (a pool of threads) → each caller's results, as they come

Each caller has a shard. The caller that came first has precedence: requests of the next shard begin only where its own
leave connections free, while its last rows wait for slow hosts. Memory does not depend on how fast the web answers: no
request begins while enough bodies wait to be decoded, or decoded images to be taken. Requests that are under way then
go on, since our own delay must not become a server's time-out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ingest.fetch import Answer, Fetcher
from ingest.fetched import Fetched, Request
from ingest.images import ImageProcessor
from ingest.settings import IngestSettings

if TYPE_CHECKING:
    from ingest.images.isolated import IsolatedProcessor

_BACKLOG = 8
"""Bodies for each decoding thread that wait, decoded or not, before no request begins; as many as are under way then
may join them."""
_POLL_S = 60.0
_PAUSE_S = 0.5

_Ticket = tuple["_Call", int]


class _Call:
    """One caller's requests, how many of them were started, and what came of them; `over`: nobody asks any more."""

    def __init__(self, requests: Sequence[Request], *, careful: bool) -> None:
        self.requests, self.careful = requests, careful
        self.started = 0
        self.over = False
        # A place among the requests, what came of it, and whether it counts in the backlog.
        self.results: SimpleQueue[tuple[int, Fetched | BaseException, bool]] = SimpleQueue()


class ClipstillEngine:
    """One HTTP client and as many decoding threads as this process has cores to itself (`OMP_NUM_THREADS`)."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._threads = _cores()
        self._fetcher: Fetcher[_Ticket] | None = self._new_fetcher()
        self._images = ImageProcessor(settings.image)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        self._lock = threading.Lock()
        # The oldest first.
        self._calls: list[_Call] = []
        self._backlog = 0
        self._drop = self._forget = self._closing = False
        self._driver = threading.Thread(target=self._drive, name="fetch", daemon=True)
        self._driver.start()

    def fetch(self, requests: Sequence[Request], *, careful: bool = False) -> Generator[tuple[int, Fetched]]:
        """What came of each request, with its place among them, in order of completion; for any number of threads.

        Whoever stops asking before the end drops what is on its way. `careful` decodes in a process of its own, which
        a hostile image may kill.
        """
        call = _Call(requests, careful=careful)
        with self._lock:
            if self._closing:
                raise _closed()
            self._calls.append(call)
        self._wake()
        try:
            for _ in requests:
                place, result, counted = call.results.get()
                if counted:
                    self._take(1)
                if isinstance(result, BaseException):
                    raise result
                yield place, result
        finally:
            self._end(call)

    def forget_failures(self) -> None:
        """Ask again for names without an answer and hosts that took no connection, as if they were new."""
        self._forget = True
        self._wake()

    def close(self) -> None:
        """Close connections and end threads; callers that still wait get an exception."""
        with self._lock:
            self._closing = True
        self._wake()
        self._driver.join()
        self._pool.shutdown(cancel_futures=True)
        self._images.close()
        if "_isolated" in vars(self):
            self._isolated.close()

    def _new_fetcher(self) -> Fetcher[_Ticket]:
        return Fetcher(self._settings.network, self._settings.image.max_bytes)

    @cached_property
    def _isolated(self) -> IsolatedProcessor:
        from ingest.images.isolated import IsolatedProcessor  # noqa: PLC0415 - rarely needed

        return IsolatedProcessor(self._settings.image)

    def _wake(self) -> None:
        fetcher = self._fetcher
        if fetcher is not None:
            fetcher.wake()

    @property
    def _crowded(self) -> bool:
        return self._backlog >= _BACKLOG * self._threads

    def _take(self, count: int) -> None:
        """So many bodies wait no more."""
        with self._lock:
            before = self._crowded
            self._backlog -= count
            relieved = before and not self._crowded
        if relieved:
            self._wake()

    def _end(self, call: _Call) -> None:
        with self._lock:
            call.over = self._drop = True
            self._calls.remove(call)
        waiting = 0
        while not call.results.empty():
            waiting += call.results.get()[2]
        self._take(waiting)
        self._wake()

    def _drive(self) -> None:
        """The fetching thread's work."""
        while not self._closing:
            try:
                if self._fetcher is None:
                    self._fetcher = self._new_fetcher()
                self._step(self._fetcher)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is for those who wait
                self._fail(error)
        self._fail(_closed())

    def _step(self, fetcher: Fetcher[_Ticket]) -> None:
        with self._lock:
            calls, crowded = list(self._calls), self._crowded
            drop, forget = self._drop, self._forget
            self._drop = self._forget = False
        if drop:
            fetcher.drop(lambda ticket: ticket[0].over)
        if forget:
            fetcher.forget_failures()
        room = 0 if crowded else fetcher.room
        for call in calls:
            upto = min(call.started + room, len(call.requests))
            room -= upto - call.started
            for place in range(call.started, upto):
                fetcher.start((call, place), call.requests[place].url)
            call.started = upto
        for (call, place), answer in fetcher.poll(_POLL_S, launch=not crowded):
            if answer.error_class is None:
                self._submit(call, place, answer)
            else:
                failed = Fetched(error_class=answer.error_class, error_message=answer.error_message)
                call.results.put((place, _fetched(answer, failed), False))

    def _fail(self, error: Exception) -> None:
        """All that is under way is lost; whoever waits for it shall know why."""
        broken, self._fetcher = self._fetcher, None
        if broken is not None:
            # Whatever that raises tells nobody anything new, and must not end the only thread that drives.
            with suppress(Exception):
                broken.close()
        else:
            # Not even a new one could be made.
            time.sleep(_PAUSE_S)
        with self._lock:
            for call in self._calls:
                call.started = len(call.requests)
                call.results.put((0, error, False))

    def _submit(self, call: _Call, place: int, answer: Answer) -> None:
        processor = self._isolated if call.careful else self._images

        def decode() -> Fetched:
            request = call.requests[place]
            return _fetched(answer, processor.process(answer.read(), request.digest, request.boxes))

        def tell(done: Future[Fetched]) -> None:
            if done.cancelled():
                return
            with self._lock:
                if not call.over:
                    call.results.put((place, done.exception() or done.result(), True))
                    return
            self._take(1)

        with self._lock:
            self._backlog += 1
        self._pool.submit(decode).add_done_callback(tell)


def _closed() -> RuntimeError:
    return RuntimeError("the engine was closed")


def _cores() -> int:
    # A list of one number for each level of nesting is legal.
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    wanted = int(first) if first.isascii() and first.isdigit() else 0
    return wanted or os.cpu_count() or 1


def _fetched(answer: Answer, image: Fetched) -> Fetched:
    """What the bytes gave, with where and when they came from."""
    return replace(
        image,
        host=answer.host,
        bytes=answer.size,
        started=answer.started,
        seconds=answer.seconds,
        attempts=answer.attempts,
    )
