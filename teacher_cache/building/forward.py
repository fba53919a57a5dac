"""Samples in, teachers' embeddings out: decoding ahead on every core while a teacher works on what is ready.

row → pixels of all its views, decoded once                 threads, `_ahead`
    → batches of whole rows, for each teacher its own       `_Columns.add`
    → forward, halved when memory runs out                  `BatchedTeacher`
    → fetched one batch late, rounded, put in place         `_Columns`
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards import Shard, ShardError
from teacher_cache.building.device_clock import DeviceClock
from teacher_cache.dtypes import Dtype, Stored, numpy_type, store
from teacher_cache.teachers import Teacher
from teacher_cache.views import EncodedImage, View, ViewPolicy

log = logging.getLogger(__name__)


class BatchedTeacher:
    """A teacher's forwards in batches of `batch_size`; one that does not fit in memory is halved, for good.

    `pad`: fill batches of images up, because a compiled tower is compiled again for every new shape.
    """

    def __init__(self, teacher: Teacher, batch_size: int, *, pad: bool = False) -> None:
        self.teacher, self.batch_size = teacher, batch_size
        self._pad, self._room = pad, batch_size
        self._clock = DeviceClock(teacher.device)

    @property
    def busy_seconds(self) -> float:
        """For how long its forwards have run."""
        return self._clock.seconds

    def images(self, pixels: Tensor) -> Tensor:
        """(n, S, S, 3) uint8 → (n, D) float32 of unit norm, on the teacher's device."""
        return self._in_parts(self._images, pixels)

    def texts(self, texts: list[str]) -> Tensor:
        """n texts → (n, D) float32 of unit norm, on the teacher's device."""
        return self._in_parts(self.teacher.embed_texts, texts)

    def _images(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.teacher.device, non_blocking=True)
        missing = self._room - len(pixels)
        if not self._pad or missing <= 0:
            return self.teacher.embed_images(pixels)
        filled = torch.cat([pixels, pixels[:1].expand(missing, -1, -1, -1)])
        return self.teacher.embed_images(filled)[: len(pixels)]

    def _in_parts(self, forward: Callable[[Any], Tensor], whole: Any) -> Tensor:
        outputs: list[Tensor] = []
        at = 0
        while at < len(whole):
            part = whole[at : at + self._room]
            try:
                with self._clock:
                    outputs.append(forward(part))
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._room == 1:
                    raise
                self._room //= 2
                log.warning("out of memory: going on in batches of %d", self._room)
                if self.teacher.device.type == "cuda":
                    torch.cuda.empty_cache()
            else:
                at += len(part)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def is_out_of_memory(error: RuntimeError) -> bool:
    # torch has a class of its own for accelerators only.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def embed_texts(runner: BatchedTeacher, texts: Sequence[str], dtype: Dtype) -> Stored:
    """(len(texts), D), as stored."""
    columns = _Columns(runner, 1, len(texts), dtype)
    for at in range(0, len(texts), runner.batch_size):
        columns.put(runner.texts(list(texts[at : at + runner.batch_size])))
    return columns.finish()[0]


def embed_views(
    runners: Sequence[tuple[BatchedTeacher, Dtype]],
    shard: Shard,
    policy: ViewPolicy,
    indices: Sequence[int],
    rows: range,
) -> tuple[list[list[Stored]], list[npt.NDArray[np.void]]]:
    """For each teacher one (len(rows), D) as stored for each view index; and for each view its packed parameters.

    Each image is decoded once for all its views and teachers. Raises `ShardError` naming the sample whose image does
    not decode, and `UnusableError` the row whose embedding is.
    """
    sizes = sorted({runner.teacher.image_size or 0 for runner, _ in runners})
    columns = [_Columns(runner, len(indices), len(rows), dtype) for runner, dtype in runners]
    drawn: list[list[View]] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:

        def sample(row: int) -> tuple[list[View], dict[int, npt.NDArray[np.uint8]]]:
            data = shard.image_bytes(row)  # outside: a disk that fails is no damaged image
            try:
                image = EncodedImage(data)
                views = [policy.draw(shard.keys[row], index, image.width, image.height) for index in indices]
                pixels = {size: np.stack([policy.render(image, view, size) for view in views]) for size in sizes}
            except OSError as error:
                raise ShardError(f"the image of {shard.keys[row]} does not decode ({error})", shard.keys[row]) from None
            return views, pixels

        most = max(column.rows_a_batch for column in columns)
        # A teacher on the CPU uses every core by itself: decoding beside it would only get in its way.
        beside = any(runner.teacher.device.type != "cpu" for runner, _ in runners)
        made = _ahead(pool, sample, rows, 2 * most) if beside else _in_turns(pool, sample, rows, most)
        for views, pixels in made:
            drawn.append(views)
            for column in columns:
                column.add(pixels[column.size])
    stored = [column.finish() for column in columns]
    return stored, [policy.pack([views[place] for views in drawn]) for place in range(len(indices))]


class _Columns:
    """What one teacher says of a shard: `views` columns of `rows` rows, filled from the top."""

    def __init__(self, runner: BatchedTeacher, views: int, rows: int, dtype: Dtype) -> None:
        teacher = runner.teacher
        self._runner, self._views, self._dtype = runner, views, dtype
        self.size = teacher.image_size or 0
        # Whole rows only, and a batch as large as that allows: what is in a batch depends on nothing else.
        self.rows_a_batch = max(1, runner.batch_size // views)
        self._values = np.empty((views, rows, teacher.embed_dim), numpy_type(dtype))
        self._scales = np.empty((views, rows), np.float32) if dtype == "int8" else None
        self._filled = 0
        self._pixels: list[npt.NDArray[np.uint8]] = []
        self._flying: deque[Tensor] = deque()

    def add(self, pixels: npt.NDArray[np.uint8]) -> None:
        """(views, S, S, 3) of the next row."""
        self._pixels.append(pixels)
        if len(self._pixels) == self.rows_a_batch:
            self._flush()

    def _flush(self) -> None:
        batch = torch.from_numpy(np.concatenate(self._pixels))
        self._pixels = []
        if self._runner.teacher.device.type == "cuda":
            batch = batch.pin_memory()
        self.put(self._runner.images(batch))

    def put(self, embeddings: Tensor) -> None:
        """(rows · views, D) float32, row by row. Kept on the device until the next batch runs there."""
        self._flying.append(embeddings)
        if len(self._flying) > 1:
            self._fetch()

    def _fetch(self) -> None:
        rows = self._flying.popleft().cpu().numpy()
        # A teacher that says zero has no direction to make unit; written so that NaN is bad too.
        bad = np.flatnonzero(~(np.linalg.norm(rows, axis=1) > 0.5))
        if bad.size:
            raise UnusableError(self._filled + int(bad[0]) // self._views, self._runner.teacher.spec)
        stored = store(rows, self._dtype)
        count = len(rows) // self._views
        place = slice(self._filled, self._filled + count)
        self._values[:, place] = stored.values.reshape(count, self._views, -1).swapaxes(0, 1)
        if self._scales is not None and stored.scales is not None:
            self._scales[:, place] = stored.scales.reshape(count, self._views).T
        self._filled += count

    def finish(self) -> list[Stored]:
        """One a view."""
        if self._pixels:
            self._flush()
        while self._flying:
            self._fetch()
        assert self._filled == self._values.shape[1]
        return [
            Stored(values, None if self._scales is None else self._scales[view])
            for view, values in enumerate(self._values)
        ]


class UnusableError(Exception):
    """The embedding of `row` by the teacher `spec` is zero or not finite."""

    def __init__(self, row: int, spec: str) -> None:
        super().__init__(f"row {row} by {spec}")
        self.row, self.spec = row, spec


T = TypeVar("T")


def _in_turns(pool: ThreadPoolExecutor, make: Callable[[int], T], rows: Sequence[int], together: int) -> Iterator[T]:
    """`make(row)` in order, `together` at a time, none in the making while the caller works."""
    for at in range(0, len(rows), together):
        yield from list(pool.map(make, rows[at : at + together]))


def _ahead(pool: ThreadPoolExecutor, make: Callable[[int], T], rows: Sequence[int], ahead: int) -> Iterator[T]:
    """`make(row)` in order, up to `ahead` of them in the making or waiting."""
    flying: deque[Future[T]] = deque()
    try:
        for row in rows:
            flying.append(pool.submit(make, row))
            if len(flying) >= ahead:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        for future in flying:
            future.cancel()
