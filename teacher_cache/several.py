"""One teacher's caches of several datasets, read as one cache of all their shards in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shards import Dataset, Folder, UserError, fingerprint
from teacher_cache.layer_files import Places
from teacher_cache.layout import teacher_names
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import Join
from teacher_cache.views import View, ViewPolicy


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
    def is_local(self) -> bool:
        return all(cache.is_local for cache in self._caches)

    @property
    def is_whole(self) -> bool:
        return all(cache.is_whole for cache in self._caches)

    @property
    def policy(self) -> ViewPolicy:
        return self._caches[0].policy

    @property
    def kept(self) -> list[int | npt.NDArray[np.bool_]]:
        return [rows for cache in self._caches for rows in cache.kept]

    def content(self, source: str = "txt") -> str:
        return fingerprint([cache.content(source) for cache in self._caches])

    def caption_source(self, source: str) -> dict[str, Any]:
        return {"datasets": [cache.caption_source(source) for cache in self._caches]}

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


Cache = TeacherCache | SeveralCaches


def open_caches(
    urls: Sequence[str], datasets: Sequence[Dataset], teachers: Sequence[str] = (), join: Join | None = None
) -> list[Cache]:
    """For each teacher its cache of these datasets; `urls`: where they lie, in the datasets' order.

    `teachers`: their folders' names; where there is one alone it need not be named. Raises `UserError` as
    `TeacherCache.open` does, and where a cache is of another of these datasets, or a teacher is not the same in all.
    """
    for url in urls:
        names = teacher_names(Folder(url))
        if len(names) > 1 and not teachers:
            raise UserError(
                f"several teachers: {', '.join(names)}", where=url, do="Choose with --teacher NAME, repeatable"
            )
    found: list[Cache] = []
    for teacher in teachers or (None,):
        caches = [TeacherCache.open(url, of, teacher, join) for url, of in zip(urls, datasets, strict=True)]
        for cache in caches:
            _refuse_swapped(cache, datasets)
        found.append(caches[0] if len(caches) == 1 else SeveralCaches(caches))
    return found


def _refuse_swapped(cache: TeacherCache, datasets: Sequence[Dataset]) -> None:
    """Keys are unique within a dataset only: joined with another one, rows would be other samples'."""
    made_of = cache.layers[0].dataset
    if made_of != cache.dataset.name and made_of in [dataset.name for dataset in datasets]:
        raise UserError(
            f"this cache is of dataset {made_of!r}, and is given for {cache.dataset.name!r}",
            where=str(cache.folder),
            do="Give the caches in the order of their datasets",
        )


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
