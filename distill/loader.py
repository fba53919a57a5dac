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
from PIL import Image
from torch import Tensor

from distill.order import Order
from shards import Dataset, Shard, UserError, seed64
from teacher_cache.reader import TeacherCache
from teacher_cache.views import View, ViewPolicy, decode, draw_view, render

_OPEN_SHARDS = 64
"""Each holds up to four mapped files, and a process may open about a thousand."""


@dataclass(frozen=True)
class Batch:
    """B samples.

    `images`: (B, S, S, 3) uint8; `tokens`: (B, context) int64; `teacher_image`, `teacher_text`: (B, D) float32 of unit
    norm, None without a cache. `captions`, `keys` and `teacher_pixels` ((B, T, T, 3) uint8, the same views at another
    resolution, only if asked for) serve those who run a teacher beside it.
    """

    step: int
    images: Tensor
    tokens: Tensor
    teacher_image: Tensor | None
    teacher_text: Tensor | None
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
        targets: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for at, (place, row) in enumerate(places.tolist()):
            self._keep_open(place)
            shard = self._dataset.shards[place]
            key = shard.keys[row]
            index = self._views.index(key, epoch)
            image, view = self._view(shard, row, index)
            images[at] = render(image, view, self._image_size)
            if pixels is not None and self._teacher_size is not None:
                pixels[at] = render(image, view, self._teacher_size)
            if self._cache is not None:
                targets[0].append(self._cache.image(shard, [row], index))
                targets[1].append(self._cache.text(shard, [row]))
            keys.append(key)
            captions.append(shard.caption(row))
        teacher = [torch.from_numpy(np.concatenate(rows)) if rows else None for rows in targets]
        # Hugging Face's tokenizers cannot be called from two threads at once.
        with self._tokenizing:
            tokens = self._tokenizer(captions)
        return Batch(step, torch.from_numpy(images), tokens, teacher[0], teacher[1], keys, captions, pixels)

    def _keep_open(self, place: int) -> None:
        """Note that a shard is in use, and close the one used longest ago once too many are open."""
        with self._opening:
            self._open[place] = self._open.pop(place, None)
            while len(self._open) > _OPEN_SHARDS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                shard = self._dataset.shards[oldest]
                shard.release()
                if self._cache is not None:
                    self._cache.release(shard)

    def _view(self, shard: Shard, row: int, index: int) -> tuple[Image.Image, View]:
        key = shard.keys[row]
        try:
            image = decode(shard.image_bytes(row))
        except OSError as error:
            raise UserError(
                f"the image of {key} does not decode ({error})",
                where=f"{shard.folder}/{shard.id:05d}.tar",
                do="Run `clipstill shards verify`",
            ) from None
        if self._cache is not None:
            return image, self._cache.view(shard, row, index)
        return image, draw_view(self._views.policy, key, index, *image.size)
