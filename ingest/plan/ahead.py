"""An iterator whose next items a thread makes ahead of their use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_S = 1.0


class StoppedError(Exception):
    """Nobody wants the rest."""


class Ahead(Generic[T]):
    """What an iterator gives, made by a thread that is up to `most` items ahead.

    `make` is called in the thread. What it gives is asked for nothing more once `stop` is set, and may itself raise
    `StoppedError` then.
    """

    def __init__(self, make: Callable[[], Iterator[T]], most: int, stop: threading.Event) -> None:
        self._items: Queue[tuple[T] | None] = Queue(most)
        self._error: BaseException | None = None
        self._stop = stop
        self._thread = threading.Thread(target=self._run, args=(make,), name="planning", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T | None]:
        """The items; None each second in which there is none yet. Raises what the iterator raised, after its items."""
        while True:
            try:
                item = self._items.get(timeout=_POLL_S)
            except Empty:
                yield None
                continue
            if item is None:
                # Once more for whoever asks again.
                self._items.put(None)
                if self._error is not None:
                    raise self._error
                return
            yield item[0]

    def close(self) -> None:
        """Stop the thread and wait for its end."""
        self._stop.set()
        self._thread.join()

    def _run(self, make: Callable[[], Iterator[T]]) -> None:
        try:
            for item in make():
                self._put((item,))
        except StoppedError:
            return
        except BaseException as error:  # noqa: BLE001 - raised where the items are wanted
            self._error = error
        self._put(None)

    def _put(self, item: tuple[T] | None) -> None:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.2)
            except Full:
                continue
            return
        if item is not None:
            raise StoppedError
