"""One batch's rows: images as pixels of their views, captions as tokens, and what the teachers said of both.

    places → key → view, caption → pixels, tokens: a chunk of rows at a time, by whichever thread is free
    all chunks → the teachers' rows, gathered at once → `Batch`

Chunks share nothing but the arrays that they fill, each its own rows.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clip_models import Tokenizer
from distill.data.batch import Batch, Views
from distill.data.tokens import with_memory
from distill.losses import Embeddings, Targets
from shards import Dataset, UserError, seed64
from teacher_cache.captions import CaptionSource
from teacher_cache.several import Cache
from teacher_cache.views import EncodedImage, View, ViewPolicy

_OPEN_SHARDS = 64
"""Each holds up to two mapped files, and a process may open about a thousand."""


@dataclass
class Part:
    """A batch while threads fill it: `left` chunks are still to be filled."""

    step: int
    epoch: int
    places: npt.NDArray[np.int64]
    images: Tensor
    pixels: npt.NDArray[np.uint8] | None
    keys: list[str]
    views: npt.NDArray[np.int64]
    numbers: dict[str, npt.NDArray[np.int64]]
    captions: dict[str, list[str]]
    left: int
    tokens: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_last(self) -> bool:
        """To be called once for each chunk that was filled."""
        with self.lock:
            self.left -= 1
            return self.left == 0


class Filler:
    """Fills parts of batches; arguments and errors are those of `Loader`. Safe to use from several threads."""

    def __init__(
        self,
        dataset: Dataset,
        views: Views,
        tokenizer: Tokenizer | None,
        *,
        image_size: int | None,
        caches: Sequence[Cache],
        captions: Sequence[str],
        teacher_size: int | None,
        teacher_scale: Mapping[str, float] | float | None,
    ) -> None:
        self._dataset, self._views, self._caches = dataset, views, tuple(caches)
        self._image_size, self._teacher_size, self._teacher_scale = image_size, teacher_size, teacher_scale
        self._tokenizer = None if tokenizer is None else with_memory(tokenizer)
        self._viewed = _with_views(self._caches)
        # Views that were drawn are equal as their policies are; what was given may be anything.
        self._compared = [cache for cache in self._caches if cache.views and cache.policy.kind == "given"][1:]
        # Where no cache knows the captions they are read from their source, under the name that a cache would give it.
        sources = [] if any(cache.captions for cache in self._caches) else [CaptionSource.parse(x) for x in captions]
        self._sources = {source.name: source for source in sources}
        self._captions = {name: _with_captions(self._caches, name) for name in self._sources or captions}
        self._open: dict[int, None] = {}
        self._opening = threading.Lock()
        self._tokenizing = threading.Lock()

    @property
    def bytes_a_sample(self) -> int:
        """Of pixels."""
        return 3 * ((self._image_size or 0) ** 2 + (self._teacher_size or 0) ** 2)

    def part(self, step: int, epoch: int, places: npt.NDArray[np.int64], chunks: int) -> Part:
        """An empty part for these samples, to be filled in so many chunks."""
        size, beside = len(places), self._teacher_size
        side = self._image_size or 0
        images = _pixels((size, side, side, 3))
        pixels = None if beside is None else np.empty((size, beside, beside, 3), np.uint8)
        numbers = {name: np.zeros(size, np.int64) for name in self._captions}
        texts = {name: [""] * size for name in self._captions}
        return Part(step, epoch, places, images, pixels, [""] * size, np.zeros(size, np.int64), numbers, texts, chunks)

    def fill(self, part: Part, rows: slice) -> Batch | None:
        """Fill these rows; the one who fills the last of a part makes a batch of it."""
        epoch = part.epoch
        places = part.places[rows]
        shards = np.unique(places[:, 0]).tolist()
        self._keep_open(shards)
        keys = [self._dataset.shards[place].keys[row] for place, row in places.tolist()]
        part.keys[rows] = keys
        part.views[rows] = [self._views.index(key, epoch) for key in keys]
        if self._image_size is not None or self._teacher_size is not None:
            self._fill_pixels(part, rows)
        for name, holders in self._captions.items():
            count = holders[0].captions[name] if holders else self._sources[name].count
            numbers = [(epoch + seed64("caption turn", key)) % count if count > 1 else 0 for key in keys]
            part.numbers[name][rows] = numbers
            part.captions[name][rows] = self._texts(places, numbers, name)
            if self._tokenizer is not None:
                # Hugging Face's tokenizers cannot be called from two threads at once.
                with self._tokenizing:
                    part.tokens[name, rows.start] = self._tokenizer(part.captions[name][rows])
        # Another thread may have had some closed, which were opened again since.
        self._keep_open(shards)
        return self._finish(part) if part.is_last() else None

    def _fill_pixels(self, part: Part, rows: slice) -> None:
        policy, images = self._views.policy, part.images.numpy()
        for at, stored in zip(range(rows.start, rows.stop), self._stored_views(part, rows), strict=True):
            place, row = part.places[at].tolist()
            shard, key = self._dataset.shards[place], part.keys[at]
            try:
                image = EncodedImage(shard.image_bytes(row))
                view = stored or self._draw(key, int(part.views[at]), image)
                if self._image_size is not None:
                    policy.render(image, view, self._image_size, images[at])
                if part.pixels is not None and self._teacher_size is not None:
                    policy.render(image, view, self._teacher_size, part.pixels[at])
            except OSError as error:
                raise UserError(
                    f"the image of {key} does not decode ({error})",
                    where=shard.tar,
                    do="Run `clipstill shards verify`",
                ) from None

    def _draw(self, key: str, index: int, image: EncodedImage) -> View:
        # Views that were given can be drawn for nobody else.
        policy = self._views.policy if self._views.policy.kind != "given" else ViewPolicy()
        return policy.draw(key, index, image.width, image.height)

    def _stored_views(self, part: Part, rows: slice) -> list[View | None]:
        """The cached views of these rows, None where there is none."""
        places, views = part.places[rows], part.views[rows]
        if self._viewed is None:
            return [None] * len(places)
        found = self._viewed.stored_views(places, views)
        for cache in self._compared:
            for key, one, other in zip(part.keys[rows], found, cache.stored_views(places, views), strict=True):
                if one is not None and other is not None and one != other:
                    raise UserError(
                        f"{key} has another crop in {self._viewed.folder} than in {cache.folder}: {one}, {other}",
                        do="Import both from the same tars",
                    )
        return found

    def _texts(self, places: npt.NDArray[np.int64], numbers: list[int], name: str) -> list[str]:
        holders = self._captions[name]
        if not holders:
            source, shards = self._sources[name], self._dataset.shards
            pairs = zip(places.tolist(), numbers, strict=True)
            return [source.texts(shards[place], [row])[number][0] for (place, row), number in pairs]
        return holders[0].texts(places, numbers, name)

    def _finish(self, part: Part) -> Batch:
        starts = sorted({start for _, start in part.tokens})
        named = self._captions if starts else ()
        tokens = {name: _pinned(torch.cat([part.tokens[name, start] for start in starts])) for name in named}
        return Batch(part.step, part.images, tokens, self._targets(part), part.keys, part.captions, part.pixels)

    def _targets(self, part: Part) -> Targets:
        """What the caches say; zeros of samples that one of them does not have."""
        if not self._caches:
            return Targets()
        present = None
        if not all(cache.is_whole for cache in self._caches):
            present = torch.from_numpy(np.logical_and.reduce([cache.present(part.places) for cache in self._caches]))
        nothing = np.zeros((len(part.places), 0), np.float32)
        images = [_rows(cache.image(part.places, part.views) if cache.views else nothing) for cache in self._caches]
        said = {}
        for name, numbers in part.numbers.items():
            texts = [
                _rows(cache.text(part.places, numbers, name) if cache.captions else nothing) for cache in self._caches
            ]
            said[name] = tuple(
                Embeddings(
                    image,
                    text,
                    scale_of(cache, self._teacher_scale),
                    cache.teacher.logit_bias or 0.0,
                    checked=False,
                )
                for cache, image, text in zip(self._caches, images, texts, strict=True)
            )
        return Targets(said, present)

    def _keep_open(self, places: list[int]) -> None:
        """Note that shards are in use, and close the ones used longest ago once too many are open."""
        with self._opening:
            for place in places:
                self._open[place] = self._open.pop(place, None)
            while len(self._open) > _OPEN_SHARDS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                self._dataset.shards[oldest].release()


def scale_of(cache: Cache, chosen: Mapping[str, float] | float | None) -> float:
    """The logit scale that a teacher's embeddings count with: the one chosen for it or for all, else its own."""
    own: float = cache.teacher.logit_scale
    return chosen.get(cache.teacher.name, own) if isinstance(chosen, Mapping) else chosen or own


def _rows(of: npt.NDArray[np.float32]) -> Tensor:
    return _pinned(torch.from_numpy(of))


def _pinned(rows: Tensor) -> Tensor:
    """Where a GPU can copy it while the host goes on."""
    return rows.pin_memory() if torch.cuda.is_available() else rows


def _pixels(shape: tuple[int, int, int, int]) -> Tensor:
    if torch.cuda.is_available():
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    # NumPy asks for huge pages, torch does not: a tenth of the loader's time went into faults of small ones.
    return torch.from_numpy(np.empty(shape, np.uint8))


def _with_views(caches: Sequence[Cache]) -> Cache | None:
    """The first that has views; the others' must be the same."""
    having = [cache for cache in caches if cache.views]
    for cache in having[1:]:
        for what, one, other in (
            ("views", having[0].views, cache.views),
            ("a policy", having[0].policy, cache.policy),
        ):
            if one != other:
                raise UserError(
                    f"{having[0].folder} has {what} {one}, {cache.folder} {other}",
                    do="Build both with the same --views and options of views",
                )
    return having[0] if having else None


def _with_captions(caches: Sequence[Cache], name: str) -> list[Cache]:
    """Those that embedded captions `name`; all that embedded captions must have, and the same."""
    having = [cache for cache in caches if cache.captions]
    sources = [cache.caption_source(name) for cache in having]
    for cache, source in zip(having, sources, strict=True):
        if source != sources[0]:
            raise UserError(
                f"captions {name!r} are {sources[0]} in {having[0].folder}, {source} in {cache.folder}",
                do="Build both with the same --captions",
            )
    return having
