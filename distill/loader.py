"""The joined loader: images, captions and the teacher's embeddings of the same views, batch by batch.

A batch is a pure function of its step, so the loader has no state: it starts at any step, and threads that each make
whole batches ahead of time cannot change what is in them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.order import Order
from shards import Dataset, UserError, seed64
from teacher_cache.reader import TeacherCache
from teacher_cache.views import EncodedImage, ViewPolicy

_OPEN_SHARDS = 64
"""Each holds up to two mapped files, and a process may open about a thousand."""


@dataclass(frozen=True)
class Batch:
    """B samples.

    `images`: (B, S, S, 3) uint8; `tokens`: (B, context) int64; `teacher_image`, `teacher_text`: (B, D) float32 of unit
    norm, None without a cache. `taught`: where some samples have no teacher, which ones these are of, int64; None if
    all have. `captions`, `keys` and `teacher_pixels` ((B, T, T, 3) uint8, the same views at another resolution, only
    if asked for) serve those who run a teacher beside it.
    """

    step: int
    images: Tensor
    tokens: Tensor
    teacher_image: Tensor | None
    teacher_text: Tensor | None
    taught: Tensor | None
    keys: list[str]
    captions: list[str]
    teacher_pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Views:
    """Which views a run trains on: `count` of them drawn by `policy`, in turn.

    In epoch e a sample shows view (e + hash(key)) mod count: all are used before any repeats.
    """

    policy: ViewPolicy
    count: int

    def index(self, key: str, epoch: int) -> int:
        return (epoch + seed64("view turn", key)) % self.count


class Loader:
    """Batches of a dataset in `order`.

    With a cache each view's crop is replayed from it, and its views must be `views`; without, it is drawn by policy,
    which gives the same crop. `image_size` is the student's; `teacher_size` adds `Batch.teacher_pixels`.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        views: Views,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        image_size: int,
        cache: TeacherCache | None = None,
        teacher_size: int | None = None,
    ) -> None:
        self._dataset, self._order, self._views, self._cache = dataset, order, views, cache
        self._tokenizer, self._image_size, self._teacher_size = tokenizer, image_size, teacher_size
        self._open: dict[int, None] = {}
        self._opening = threading.Lock()
        self._tokenizing = threading.Lock()

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """The batches of steps start..stop-1, made ahead by as many threads as there are cores.

        The threads end with the generator: close it if it is not read to its end.
        """
        threads = os.cpu_count() or 1
        with ThreadPoolExecutor(threads, "loader") as pool:
            flying: deque[Future[Batch]] = deque()
            upcoming = iter(range(start, stop))
            try:
                for step in upcoming:
                    flying.append(pool.submit(self.batch, step))
                    if len(flying) > threads:
                        yield flying.popleft().result()
                while flying:
                    yield flying.popleft().result()
            finally:
                for future in flying:
                    future.cancel()

    def batch(self, step: int) -> Batch:
        """The batch of one step. Raises `UserError` naming a sample whose image does not decode."""
        places = self._order.batch(step)
        epoch = step // self._order.steps_per_epoch
        size = len(places)
        images = np.empty((size, self._image_size, self._image_size, 3), np.uint8)
        pixels = None
        if self._teacher_size is not None:
            pixels = np.empty((size, self._teacher_size, self._teacher_size, 3), np.uint8)
        keys, captions = [], []
        indices = np.empty(size, np.int64)
        present = np.ones(size, np.bool_) if self._cache is None else self._cache.present(places)
        for at, (place, row) in enumerate(places.tolist()):
            self._keep_open(place)
            shard = self._dataset.shards[place]
            key = shard.keys[row]
            index = self._views.index(key, epoch)
            indices[at] = index
            data = shard.image_bytes(row)
            try:
                image = EncodedImage(data)
                if self._cache is not None and present[at]:
                    view = self._cache.view(place, row, index)
                else:
                    # Views that were given can be drawn for nobody else.
                    policy = self._views.policy if self._views.policy.kind != "given" else ViewPolicy()
                    view = policy.draw(key, index, image.width, image.height)
                images[at] = self._views.policy.render(image, view, self._image_size)
                if pixels is not None and self._teacher_size is not None:
                    pixels[at] = self._views.policy.render(image, view, self._teacher_size)
            except OSError as error:
                raise UserError(
                    f"the image of {key} does not decode ({error})",
                    where=f"{shard.folder}/{shard.id:05d}.tar",
                    do="Run `clipstill shards verify`",
                ) from None
            keys.append(key)
            captions.append(shard.caption(row))
        teacher_image = teacher_text = taught = None
        if self._cache is not None:
            taught = None if present.all() else torch.from_numpy(np.flatnonzero(present))
            teacher_image = torch.from_numpy(self._cache.image(places[present], indices[present]))
            teacher_text = torch.from_numpy(self._cache.text(places[present]))
        # Hugging Face's tokenizers cannot be called from two threads at once.
        with self._tokenizing:
            tokens = self._tokenizer(captions)
        return Batch(
            step, torch.from_numpy(images), tokens, teacher_image, teacher_text, taught, keys, captions, pixels
        )

    def _keep_open(self, place: int) -> None:
        """Note that a shard is in use, and close the one used longest ago once too many are open."""
        with self._opening:
            self._open[place] = self._open.pop(place, None)
            while len(self._open) > _OPEN_SHARDS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                self._dataset.shards[oldest].release()
