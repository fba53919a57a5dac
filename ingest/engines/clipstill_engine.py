"""Our own engine: fetch on one thread, decode, resize and encode on others.

    requests → Fetcher (this thread, curl) → ImageProcessor (a pool of threads) → results, in order of completion

Both ends are bounded: no request begins while enough bodies wait to be decoded, so memory does not depend on how fast
the web answers. Those under way go on meanwhile: how long we take to decode is no server's fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from queue import SimpleQueue

from ingest.fetch import Answer, Fetcher
from ingest.images import ImageProcessor
from ingest.ledger import Fetched, Request
from ingest.settings import IngestSettings

_BACKLOG = 8
"""Bodies waiting for each decoding thread before no request begins; as many as are under way then may join them."""
_POLL_S = 0.5


class ClipstillEngine:
    """One HTTP client and as many decoding threads as this process has cores to itself (`OMP_NUM_THREADS`)."""

    def __init__(self, settings: IngestSettings) -> None:
        self._threads = _cores()
        self._new_fetcher = partial(Fetcher, settings.network, settings.image.max_bytes)
        self._fetcher = self._new_fetcher()
        self._images = ImageProcessor(settings.image)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

    def fetch(self, requests: Sequence[Request]) -> Iterator[tuple[int, Fetched]]:
        """What came of each request, with its place among them, in order of completion.

        Whoever stops asking before the end drops what is on its way; then another call may begin.
        """
        decoded: SimpleQueue[tuple[int, Future[Fetched]]] = SimpleQueue()
        started = decoding = 0
        try:
            while True:
                crowded = decoding >= _BACKLOG * self._threads
                upto = started if crowded else min(started + self._fetcher.room, len(requests))
                for place in range(started, upto):
                    self._fetcher.start(place, requests[place].url)
                started = upto
                if not self._fetcher.pending and not decoding:
                    return
                for place, answer in self._fetcher.poll(_POLL_S, launch=not crowded):
                    if answer.error_class is None:
                        self._submit(place, answer, requests[place], decoded)
                        decoding += 1
                    else:
                        failed = Fetched(error_class=answer.error_class, error_message=answer.error_message)
                        yield place, _fetched(answer, failed)
                while not decoded.empty():
                    place, done = decoded.get()
                    decoding -= 1
                    yield place, done.result()
        finally:
            if self._fetcher.pending:
                self._fetcher.close()
                self._fetcher = self._new_fetcher()

    def close(self) -> None:
        """Close connections and end threads."""
        self._pool.shutdown(cancel_futures=True)
        self._images.close()
        self._fetcher.close()

    def _submit(
        self, place: int, answer: Answer, request: Request, into: SimpleQueue[tuple[int, Future[Fetched]]]
    ) -> None:
        def tell(done: Future[Fetched]) -> None:
            into.put((place, done))
            self._fetcher.wake()

        self._pool.submit(self._decode, answer, request).add_done_callback(tell)

    def _decode(self, answer: Answer, request: Request) -> Fetched:
        return _fetched(answer, self._images.process(answer.read(), request.digest, request.boxes))


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
