"""A model's two sides on a set: images decoded ahead on every core, prompts and captions embedded once."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_models import LoadedModel, Precision, autocast
from evaluation.prompts import Prompts
from evaluation.sets.base import Images
from evaluation.text_cache import TextCache, text_fingerprint
from shards.errors import UserError
from shards.progress import Meter

_TEXTS_A_FORWARD = 256
_BATCHES_AHEAD = 3
_LONG = 2000
"""Fewer images or texts show no progress."""
_WAITING = 0.05
"""Of the time: who waits longer for images has a loader that is slower than the model."""


class Deal(Protocol):
    """How work is dealt out over processes: each has a `part` of so many things, and puts all parts together again."""

    def part(self, count: int) -> slice: ...

    def whole(self, part: Tensor, count: int) -> Tensor:
        """(rows of this process's part, D) → (count, D) of all, in every process."""

    def agreed(self, error: UserError | None) -> None:
        """Raise it in every process if any has one: none may wait for another that has given up."""


class Alone:
    """One process does everything."""

    def part(self, count: int) -> slice:
        return slice(0, count)

    def whole(self, part: Tensor, count: int) -> Tensor:  # noqa: ARG002 - as every deal's
        return part

    def agreed(self, error: UserError | None) -> None:
        if error is not None:
            raise error


@dataclass(frozen=True)
class Speed:
    """How long `images` took, and how much of that was waiting for the loader; the first batch's wait is left out."""

    images: int
    seconds: float
    waited: float

    def in_words(self) -> dict[str, Any]:
        """What results say. The slower of loader and model is the limit."""
        busy = max(self.seconds - self.waited, 1e-9)
        share = self.waited / max(self.seconds, 1e-9)
        return {
            "images_per_second": self.images / max(self.seconds, 1e-9),
            "waited_for_images": share,
            "limited_by": "loader" if share > _WAITING else "model",
            "model_images_per_second": self.images / busy,
        }


class Encoder:
    """`loaded` on `device`, in its own dtype and a precision of `PRECISIONS`; rows are unit vectors on the CPU.

    Rows are float32, or float64 of a model in float64. `texts` are kept in `cache`, if there is one. With a `label`,
    what takes long shows its progress under it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: str | torch.device,
        *,
        batch_size: int = 64,
        precision: Precision = "fp32",
        cache: TextCache | None = None,
        deal: Deal | None = None,
        label: str = "",
    ) -> None:
        if loaded.model.training:
            raise ValueError("evaluation needs the model in evaluation mode")
        self._loaded, self._device, self._batch = loaded, torch.device(device), batch_size
        self._precision, self._cache, self._deal, self._label = precision, cache, deal or Alone(), label
        self._model = loaded.model.to(self._device)
        self._dtype = next(self._model.parameters()).dtype

    @torch.no_grad()
    def images(self, images: Images) -> tuple[Tensor, Speed]:
        """(n, D), and how fast. Raises `UserError` for an image that cannot be decoded, or rows that are not finite."""
        mine = self._deal.part(len(images))
        parts: list[Tensor] = []
        waited, began = 0.0, time.perf_counter()
        error = None
        try:
            with self._progress("images", mine.stop - mine.start) as advance:
                for batch in self._batches(images, range(len(images))[mine]):
                    asked = time.perf_counter()
                    pixels = torch.stack([image.result() for image in batch])
                    ready = time.perf_counter()
                    # What the first batch takes is the start, and no rate.
                    waited, began = (waited + ready - asked, began) if parts else (0.0, ready)
                    with autocast(self._device, self._precision):
                        found = self._model.encode_image(pixels.to(self._device, self._dtype), normalize=True)
                    parts.append(at_least_single(found).cpu())
                    advance(len(batch))
        except UserError as refused:
            error = refused
        seconds = time.perf_counter() - began
        self._deal.agreed(error)
        rows = self._finite(self._whole(parts, len(images)), "image")
        return rows, Speed(mine.stop - mine.start, seconds, waited)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(m, D) of captions or prompts."""
        if self._cache is None:
            return self._embedded(texts)
        return self._cache.kept(self._by("each"), texts, len(texts), self._embedded)

    def _by(self, what: str) -> tuple[str, ...]:
        return self._fingerprint, self._precision, self._device.type, what

    @cached_property
    def _fingerprint(self) -> str:
        return text_fingerprint(self._loaded)

    @torch.no_grad()
    def classes(self, prompts: Prompts) -> Tensor:
        """The zero-shot classifier (C, D): each class's prompts, normalised, averaged and normalised again."""
        listed = prompts.texts()
        flat, counts = [prompt for one in listed for prompt in one], [len(one) for one in listed]

        def averaged(texts: Sequence[str]) -> Tensor:
            rows = torch.split(self._embedded(texts), counts)
            return torch.stack([normalize(one.mean(dim=0), dim=0) for one in rows])

        if self._cache is None:
            return averaged(flat)
        return self._cache.kept(self._by(f"classes of {counts}"), flat, len(counts), averaged)

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        mine = texts[self._deal.part(len(texts))]
        parts: list[Tensor] = []
        with self._progress("texts", len(mine)) as advance:
            for start in range(0, len(mine), _TEXTS_A_FORWARD):
                some = list(mine[start : start + _TEXTS_A_FORWARD])
                tokens = self._loaded.tokenizer(some).to(self._device)
                with autocast(self._device, self._precision):
                    rows = self._model.encode_text(tokens)
                parts.append(normalize(at_least_single(rows), dim=-1).cpu())
                advance(len(some))
        return self._finite(self._whole(parts, len(texts)), "text")

    def _finite(self, rows: Tensor, what: str) -> Tensor:
        """`rows`, or `UserError`: figures of a broken model would only be low."""
        broken = int((~torch.isfinite(rows).all(dim=1)).sum())
        if broken:
            raise UserError(
                f"{broken} of {len(rows)} {what} embeddings are not finite, in {self._precision}",
                where=self._loaded.name,
                do="Its weights are damaged or have diverged"
                + ("" if self._precision == "fp32" else ", or it needs --precision fp32"),
            )
        return rows

    @contextlib.contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        if not self._label or total < _LONG:
            yield lambda _: None
            return
        with Meter(f"{self._label}: {what}", total, unit=what, items=what) as meter:
            yield lambda done: meter.advance(done, items=done)

    def _whole(self, parts: list[Tensor], count: int) -> Tensor:
        width = int(self._loaded.config["model_cfg"]["embed_dim"]) if not parts else parts[0].shape[1]
        rows = (
            torch.cat(parts) if parts else torch.empty(0, width, dtype=torch.promote_types(self._dtype, torch.float32))
        )
        return self._deal.whole(rows, count)

    def _batches(self, images: Images, places: range) -> Iterator[list[Future[Tensor]]]:
        """The images in order. While one batch is used, the next ones are decoded."""
        waiting: deque[list[Future[Tensor]]] = deque()
        pool = ThreadPoolExecutor(min(32, os.cpu_count() or 1))
        try:
            for start in range(0, len(places), self._batch):
                waiting.append([pool.submit(self._pixels, images, at) for at in places[start : start + self._batch]])
                if len(waiting) > _BATCHES_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pixels(self, images: Images, at: int) -> Tensor:
        return self._loaded.preprocess(images.open(at))


def at_least_single(rows: Tensor) -> Tensor:
    """`rows` as float32, or as they are if they are finer."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
