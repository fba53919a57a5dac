"""The joined loader: images, captions and the teachers' embeddings of the same views, batch by batch.

    step → the batch's places (`order.py`) → chunks of rows, each filled by one of several threads (`collate.py`)
         → `Batch` (`batch.py`)

A batch is a pure function of its step, so the loader has no state: it starts at any step, and which thread fills what
cannot change what is in it. Shards and caches on an object store are copied ahead of their turn, in the background.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from clip_models import Tokenizer
from distill.data.batch import Batch, Views
from distill.data.collate import Filler, Part
from distill.data.mixture import Mixture
from distill.data.order import Order
from shards import Dataset
from teacher_cache.several import Cache

__all__ = ["Batch", "Loader", "Views"]

_CHUNK = 32
"""Samples that a thread fills in one go."""
_AHEAD = 1 << 30
"""Bytes of pixels that may be made ahead: beyond it, one batch is, however large."""
_COPYING = 4
"""Shards that are copied at once."""


class Loader:
    """Batches of a dataset in `order`, or the part of each that is `rank`'s of `ranks`.

    With `caches` each view's crop is replayed from the first that has views; without, it is drawn by policy, which
    gives the same crop. Of a caption set with N captions a sample, in epoch e a sample shows caption (e + hash(key))
    mod N. `image_size` is the student's, None of one that sees no pixels: then no image is read. `teacher_size` adds
    `Batch.teacher_pixels`. `teacher_scale`, of all teachers or by name, stands for their own logit scales. `waited`:
    seconds that whoever reads `batches` has waited for them so far.

    `captions` names sets of the caches; where none has any, they are sources as in `teacher_cache.captions`.

    Raises `UserError` if two caches were built over other views or captions, or one of `captions` is not there.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order | Mixture,
        views: Views,
        tokenizer: Tokenizer | None,
        *,
        image_size: int | None,
        caches: Sequence[Cache] = (),
        captions: Sequence[str] = ("txt",),
        rank: int = 0,
        ranks: int = 1,
        teacher_size: int | None = None,
        teacher_scale: Mapping[str, float] | float | None = None,
    ) -> None:
        self._dataset, self._order, self._caches = dataset, order, tuple(caches)
        self._size, self._first = order.batch_size // ranks, rank * (order.batch_size // ranks)
        self._filler = Filler(
            dataset,
            views,
            tokenizer,
            image_size=image_size,
            caches=caches,
            captions=captions,
            teacher_size=teacher_size,
            teacher_scale=teacher_scale,
        )
        self.waited = 0.0

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of steps start..stop-1, made ahead by as many threads as there are cores for this process.

        The threads end with the generator: close it if it is not read to its end. Raises as `batch` does.
        """
        threads = _threads()
        ahead = max(1, min(threads + 1, _AHEAD // (self._size * max(1, self._filler.bytes_a_sample))))
        flying: deque[list[Future[Batch | None]]] = deque()
        with self._copying() as copying, ThreadPoolExecutor(threads, "loader") as pool:
            try:
                for step in range(start, stop):
                    copying.ask(self._order.ahead(step))
                    flying.append(self._submit(pool, step))
                    if len(flying) > ahead:
                        yield self._wait(flying.popleft())
                while flying:
                    yield self._wait(flying.popleft())
            finally:
                for futures in flying:
                    for future in futures:
                        future.cancel()

    def batch(self, step: int) -> Batch:
        """The batch of one step. Raises `UserError` naming a sample whose image does not decode."""
        batch = self._filler.fill(self._part(step, chunks=1), slice(0, self._size))
        assert batch is not None
        return batch

    def _part(self, step: int, chunks: int) -> Part:
        places = self._order.batch(step)[self._first : self._first + self._size]
        return self._filler.part(step, step // self._order.steps_per_epoch, places, chunks)

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> list[Future[Batch | None]]:
        chunks = [slice(first, min(first + _CHUNK, self._size)) for first in range(0, self._size, _CHUNK)]
        part = self._part(step, len(chunks))
        return [pool.submit(self._filler.fill, part, rows) for rows in chunks]

    def _wait(self, futures: list[Future[Batch | None]]) -> Batch:
        began = time.monotonic()
        (batch,) = [batch for future in futures if (batch := future.result()) is not None]
        self.waited += time.monotonic() - began
        return batch

    @contextlib.contextmanager
    def _copying(self) -> Iterator[_Copying]:
        with ThreadPoolExecutor(_COPYING, "loader-copies") as pool:
            copying = _Copying(self._dataset, self._caches, pool)
            try:
                yield copying
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class _Copying:
    """Copies what is on an object store to this machine before it is asked for."""

    def __init__(self, dataset: Dataset, caches: Sequence[Cache], pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._shards, self._caches = dataset.shards, [cache for cache in caches if not cache.is_local]
        self._asked: set[int] = set()

    def ask(self, places: Sequence[int]) -> None:
        """Begin to copy those of these shards that were not in the last call."""
        for place in places:
            if place not in self._asked and (self._caches or not self._shards[place].is_local):
                # What fails here fails again, and is told, when it is needed.
                self._pool.submit(self._copy, place)
        self._asked = set(places)

    def _copy(self, place: int) -> None:
        if not self._shards[place].is_local:
            self._shards[place].fetch()
        for cache in self._caches:
            cache.fetch(place)


def _threads() -> int:
    """As many as there are cores for this process: torchrun and Ray say how many share a machine's."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
