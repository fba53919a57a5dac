"""One teacher's caches of several datasets, read as one cache of all their shards in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shards import UserError, fingerprint
from teacher_cache.layer_files import Places
from teacher_cache.reader import TeacherCache
from teacher_cache.views import View


class SeveralCaches:
    """Answers as a `TeacherCache` would whose dataset had the shards of all these, in order.

    Raises `UserError` unless all are of one teacher, with the same views and the same caption sets; the message names
    both values.
    """

    def __init__(self, caches: Sequence[TeacherCache]) -> None:
        first = caches[0]
        for other in caches[1:]:
            _refuse_other(first, other)
        self._caches = tuple(caches)
        self._firsts = np.cumsum([0, *(len(cache.dataset.shards) for cache in caches)])
        self.folder, self.teacher, self.views, self.captions = first.folder, first.teacher, first.views, first.captions
        self.missing = sum(cache.missing for cache in caches)

    @property
    def policy(self) -> Any:
        return self._caches[0].policy

    @property
    def kept(self) -> list[npt.NDArray[np.int64]]:
        return [rows for cache in self._caches for rows in cache.kept]

    def content(self, source: str = "txt") -> str:
        return fingerprint([cache.content(source) for cache in self._caches])

    def caption_source(self, source: str) -> dict[str, Any]:
        return self._caches[0].caption_source(source)

    def require(self, source: str) -> None:
        for cache in self._caches:
            cache.require(source)

    def fetch(self, place: int) -> None:
        number = int(np.searchsorted(self._firsts, place, side="right")) - 1
        self._caches[number].fetch(place - int(self._firsts[number]))

    def present(self, places: Places) -> npt.NDArray[np.bool_]:
        out = np.ones(len(places), np.bool_)
        for cache, chosen, own in self._split(places):
            out[chosen] = cache.present(own)
        return out

    def image(self, places: Places, views: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        out = np.empty((len(places), self.teacher.embed_dim), np.float32)
        for cache, chosen, own in self._split(places):
            out[chosen] = cache.image(own, views[chosen])
        return out

    def text(
        self, places: Places, captions: npt.NDArray[np.int64] | int = 0, source: str = "txt"
    ) -> npt.NDArray[np.float32]:
        numbers = np.broadcast_to(np.asarray(captions, np.int64), (len(places),))
        out = np.empty((len(places), self.teacher.embed_dim), np.float32)
        for cache, chosen, own in self._split(places):
            out[chosen] = cache.text(own, numbers[chosen], source)
        return out

    def stored_views(self, places: Places, views: npt.NDArray[np.int64]) -> list[View | None]:
        out: list[View | None] = [None] * len(places)
        for cache, chosen, own in self._split(places):
            for at, view in zip(chosen.tolist(), cache.stored_views(own, views[chosen]), strict=True):
                out[at] = view
        return out

    def texts(self, places: Places, numbers: Sequence[int], source: str = "txt") -> list[str]:
        out = [""] * len(places)
        for cache, chosen, own in self._split(places):
            found = cache.texts(own, [numbers[at] for at in chosen.tolist()], source)
            for at, text in zip(chosen.tolist(), found, strict=True):
                out[at] = text
        return out

    def _split(self, places: Places) -> Iterator[tuple[TeacherCache, npt.NDArray[np.int64], Places]]:
        """Each cache that some of these samples are in, which of them, and their places in it."""
        owners = np.searchsorted(self._firsts, places[:, 0], side="right") - 1
        for number in np.unique(owners).tolist():
            chosen = np.flatnonzero(owners == number)
            yield self._caches[number], chosen, places[chosen] - np.array([self._firsts[number], 0])


def _refuse_other(one: TeacherCache, other: TeacherCache) -> None:
    pairs = (
        ("teacher", one.teacher.fingerprint, other.teacher.fingerprint),
        ("views", one.views, other.views),
        ("policy", one.policy.identity() if one.views else None, other.policy.identity() if other.views else None),
        ("captions", one.captions, other.captions),
    )
    for what, here, there in pairs:
        if here != there:
            raise UserError(
                f"{one.folder} has {what} {here}, {other.folder} {there}",
                do="Build both with the same teacher and the same options",
            )
