"""Read a cache beside its dataset: refuse what does not belong together, then gather rows from memory maps.

Samples are named by (place, row): the shard's place in `dataset.shards`, and the sample's row in that shard.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from shards import Dataset, Folder, UserError, fingerprint, published_records
from teacher_cache.captions import source_of
from teacher_cache.dtypes import load, numpy_type
from teacher_cache.join import Joined
from teacher_cache.layer_files import Layer, Places, Values
from teacher_cache.layout import TEACHER, LayerFacts, TeacherFacts, no_cache, read_layers, read_teacher, teacher_names
from teacher_cache.settings import Join
from teacher_cache.views import VIEWS_VERSION, View, ViewPolicy

log = logging.getLogger(__name__)


class TeacherCache:
    """One teacher's embeddings of one dataset.

    `teacher` says whose; `views` is K, the number of cached views (0 of a text-only teacher), `policy` how they were
    drawn; `captions` names the caption sets with how many each sample has. `incomplete`: layers that are being added,
    or were given up, with what they lack; they are left out. `missing` counts the samples without embeddings. Safe to
    use from several threads.
    """

    def __init__(self, folder: Folder, teacher: TeacherFacts, dataset: Dataset, layers: list[Layer]) -> None:
        self.folder, self.teacher, self.dataset = folder, teacher, dataset
        self.incomplete: dict[str, str] = {}
        self.layers = tuple(layer.facts for layer in layers)
        self._views = [layer for layer in layers if layer.facts.kind == "views"]
        self._captions = {
            layer.facts.name.removeprefix("captions-"): layer for layer in layers if layer.facts.kind == "captions"
        }
        self.views = sum(len(layer.facts.columns) for layer in self._views)
        self.captions = {name: len(layer.facts.columns) for name, layer in self._captions.items()}
        self._layer_of = np.repeat(np.arange(len(self._views)), [len(layer.facts.columns) for layer in self._views])
        self._policy = ViewPolicy.from_identity(self._views[0].facts.settings["policy"]) if self._views else None
        # Of shards that lack some samples only: where nothing is missing, nothing is held for each sample.
        self._present: dict[int, npt.NDArray[np.bool_]] = {}
        for place in range(len(dataset.shards)):
            parts = [part for layer in layers if (part := layer.joined.present(place)) is not None]
            if parts and not (present := np.logical_and.reduce(parts)).all():
                self._present[place] = present
        self.missing = sum(int((~present).sum()) for present in self._present.values())
        self._leaves_out = False

    @staticmethod
    def open(url: str, dataset: Dataset, teacher: str | None = None, join: Join | None = None) -> TeacherCache:
        """Open the cache at `url` for `dataset`; `teacher` names the folder when the cache holds several.

        Raises `UserError` if there is no cache, no such teacher, nothing in it, or the cache does not fit the dataset
        by the policy of the join; the message names both values.
        """
        join = join or Join()
        folder = _teacher_folder(Folder(url), teacher)
        facts = read_teacher(folder)
        assert facts is not None
        layers = [*read_layers(folder, "views"), *read_layers(folder, "captions")]
        _check_layers(folder, facts, layers)
        layers, incomplete = _without_incomplete(folder, layers, dataset, join)
        opened = [Layer(folder.child(layer.name), layer, facts.embed_dim, dataset, join) for layer in layers]
        cache = TeacherCache(folder, facts, dataset, opened)
        cache.incomplete = incomplete
        if cache.missing == len(dataset):
            raise cache._unfinished(opened) or cache._nothing_in_common(opened[0])
        if join.policy == "skip":
            cache._leave_out(join.limit)
        return cache

    def _leave_out(self, limit: float) -> None:
        total = len(self.dataset)
        if self.missing > limit * total:
            raise UserError(
                f"{self.missing} of {total} samples have no embeddings ({self.missing / total:.2%}), the limit is "
                f"{limit:.2%}",
                where=str(self.folder),
                do="Check that cache and shards belong together, or raise the limit",
            )
        self._leaves_out = True

    @property
    def is_local(self) -> bool:
        """Whether nothing of it has to be copied from an object store."""
        return self.folder.is_local

    @property
    def is_whole(self) -> bool:
        """Whether all samples that take part have embeddings: they do unless joined with `none`."""
        return not self.missing or self._leaves_out

    @property
    def kept(self) -> list[int | npt.NDArray[np.bool_]]:
        """For each shard how many samples take part if all do, else (count,) which."""
        left_out = self._present if self._leaves_out else {}
        return [left_out.get(place, shard.count) for place, shard in enumerate(self.dataset.shards)]

    @property
    def policy(self) -> ViewPolicy:
        """How the views were drawn. Raises `UserError` if there are none."""
        if self._policy is None:
            raise self._no_views()
        return self._policy

    def joined(self, layer: str) -> Joined:
        """Files and places of a layer, by its name."""
        (found,) = (held for held in (*self._views, *self._captions.values()) if held.facts.name == layer)
        return found.joined

    def content(self, source: str = "txt") -> str:
        """16 hex digits over the views, the captions `source`, and the samples that take part: equal for equal data."""
        layers = [*self._views, *([self._captions[source]] if source in self._captions else [])]
        files = [[layer.facts.fingerprint, *(r.content for r in layer.joined.records.values())] for layer in layers]
        left_out = sha256()
        for place, present in self._present.items() if self._leaves_out else ():
            left_out.update(np.array([place, len(present)], "<i8").tobytes() + np.packbits(present).tobytes())
        return fingerprint([files, left_out.hexdigest() if self.missing else None])

    def present(self, places: Places) -> npt.NDArray[np.bool_]:
        """(n,): which of these samples have embeddings; all of them unless joined with `none`."""
        if not self.missing:
            return np.ones(len(places), np.bool_)
        held = self._present
        return np.array([place not in held or held[place][row] for place, row in places.tolist()], np.bool_)

    def image(self, places: Places, views: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, D) float32 of unit norm: the teacher's embedding of view `views[i]` of sample i; zeros where it has none.

        Raises `UserError` if there are no views.
        """
        return load(self.image_stored(places, views), self._views[0].facts.dtype)

    def text(
        self, places: Places, captions: npt.NDArray[np.int64] | int = 0, source: str = "txt"
    ) -> npt.NDArray[np.float32]:
        """(n, D) float32 of unit norm: caption `captions[i]` of the set `source`; zeros where a sample has none.

        Raises `UserError` if the cache does not hold that set.
        """
        layer = self._caption_layer(source)
        return load(self.text_stored(places, captions, source), layer.facts.dtype)

    def image_stored(self, places: Places, views: npt.NDArray[np.int64]) -> Values:
        """As `image`, in the type of the files, rounded and not made unit again."""
        if not self._views:
            raise self._no_views()
        if len(self._views) == 1:
            return self._views[0].gather(places, views)
        layers = self._layer_of[views]
        out = np.empty((len(places), self.teacher.embed_dim), numpy_type(self._views[0].facts.dtype))
        for number, layer in enumerate(self._views):
            chosen = np.flatnonzero(layers == number)
            if chosen.size:
                out[chosen] = layer.gather(places[chosen], views[chosen] - layer.facts.columns[0])
        return out

    def text_stored(self, places: Places, captions: npt.NDArray[np.int64] | int = 0, source: str = "txt") -> Values:
        """As `text`, in the type of the files, rounded and not made unit again."""
        columns = np.broadcast_to(np.asarray(captions, np.int64), (len(places),))
        return self._caption_layer(source).gather(places, columns)

    def view(self, place: int, row: int, view: int) -> View:
        """The stored parameters of one view."""
        policy, layer = self.policy, self._views[self._layer_of[view]]
        # Of the layer alone: a sample whose caption is still to be embedded has its views.
        file, line = layer.find(place, row)
        return policy.unpack_all(file.params(view, policy.dtype)[line : line + 1])[0]

    def stored_views(self, places: Places, views: npt.NDArray[np.int64]) -> list[View | None]:
        """The stored parameters of view `views[i]` of sample i, None where it has none.

        Raises `UserError` if there are no views.
        """
        policy, dtype = self.policy, self.policy.dtype
        held = self.present(places)
        packed = np.zeros(len(places), dtype)
        for at, ((place, row), view) in enumerate(zip(places.tolist(), views.tolist(), strict=True)):
            if held[at]:
                file, line = self._views[self._layer_of[view]].find(place, row)
                packed[at] = file.params(view, dtype)[line]
        found: list[View | None] = list(policy.unpack_all(packed))
        for missing in np.flatnonzero(~held).tolist():
            found[missing] = None
        return found

    def caption(self, place: int, row: int, number: int = 0, source: str = "txt") -> str | None:
        """The caption that was embedded, if the cache holds its text; None if the shards do."""
        file, at = self._caption_layer(source).find(place, row)
        return file.text(number, at)

    def texts(self, places: Places, numbers: Sequence[int], source: str = "txt") -> list[str]:
        """Caption `numbers[i]` of the set `source`, of sample i: the text that was embedded, wherever it is kept.

        Of a sample without embeddings it is its own caption. Raises `UserError` if the cache does not hold that set.
        """
        layer = self._caption_layer(source)
        kept = source_of(layer.facts.settings["source"])
        found = []
        for (place, row), number, held in zip(places.tolist(), numbers, self.present(places).tolist(), strict=True):
            shard = self.dataset.shards[place]
            if kept.kind == "txt" or not held:
                found.append(shard.caption(row))
            elif kept.kind == "json":
                found.append(kept.texts(shard, [row])[number][0])
            else:
                found.append(self.caption(place, row, number, source) or "")
        return found

    def caption_source(self, source: str) -> dict[str, Any]:
        """What decides the captions of the set `source`, JSON-able: caches of equal sources embedded equal captions.

        Raises `UserError` if the cache does not hold that set.
        """
        identity: dict[str, Any] = self._caption_layer(source).facts.settings["source"]
        return identity

    def fetch(self, place: int) -> None:
        """Have a shard's files copied from an object store, so that the next use need not wait for it."""
        for layer in (*self._views, *self._captions.values()):
            layer.fetch(place)

    def require(self, source: str) -> None:
        """Raise `UserError` unless there are views, and captions `source`."""
        if not self._views:
            raise self._no_views()
        self._caption_layer(source)

    def _unfinished(self, layers: list[Layer]) -> UserError | None:
        """Of layers of which some have these samples, or have nothing at all yet; None if the keys are others."""
        counts = [shard.count for shard in self.dataset.shards]
        held = {
            layer.facts.name: sum(
                present is None or bool(present.any()) for present in map(layer.joined.present, range(len(counts)))
            )
            for layer in layers
        }
        if not any(held.values()) and any(layer.joined.records for layer in layers):
            return None
        said = ", ".join(f"{name} of {count} of {len(counts)} shards" for name, count in held.items())
        return UserError(
            f"this cache is not finished, and no sample has all of it yet: it holds {said}",
            where=str(self.folder),
            do="Run `clipstill cache build` again; it goes on where it stopped",
        )

    def _nothing_in_common(self, layer: Layer) -> UserError:
        here = next(shard.keys[0] for shard in self.dataset.shards if shard.count)
        there = next((layer.first_key(record) for record in layer.joined.records.values() if record.count), "none")
        return UserError(
            f"none of the {len(self.dataset)} samples has embeddings: the first key in the cache is {there}, in "
            f"{self.dataset.folder} {here}",
            where=str(self.folder),
            do="Check that cache and shards belong together",
        )

    def _no_views(self) -> UserError:
        return UserError("this teacher embedded captions only", where=str(self.folder), do="Choose another teacher")

    def _caption_layer(self, source: str) -> Layer:
        if source not in self._captions:
            lacks = self.incomplete.get(f"captions-{source}", "no captions")
            raise UserError(
                f"{lacks} {source!r}; there are {', '.join(self._captions) or 'none'}",
                where=str(self.folder),
                do="Add them with `clipstill cache build --captions`",
            )
        return self._captions[source]


def _check_layers(folder: Folder, facts: TeacherFacts, layers: list[LayerFacts]) -> None:
    views = [index for layer in layers for index in layer.columns if layer.kind == "views"]
    if not layers or views != list(range(len(views))):
        raise UserError(
            f"it holds views {views} and {len(layers)} layers in all; needed are views from 0 on, or captions",
            where=str(folder),
            do="Finish it with `clipstill cache build`",
        )
    first: dict[str, LayerFacts] = {}
    for layer in layers:
        if layer.teacher != facts.fingerprint:
            raise UserError(
                f"layer {layer.name} was made by teacher {layer.teacher}, {TEACHER} is {facts.fingerprint}",
                where=str(folder),
                do="Build into an empty folder",
            )
        version = layer.settings["policy"].get("version") if layer.kind == "views" else VIEWS_VERSION
        if version != VIEWS_VERSION:
            raise UserError(
                f"views of layer {layer.name} were made by version {version}, this is version {VIEWS_VERSION}",
                where=str(folder),
                do="Build this cache again",
            )
        standing = first.setdefault(layer.kind, layer)
        for name in ("policy", "dtype") if layer.kind == "views" else ("dtype",):
            if layer.settings[name] != standing.settings[name]:
                raise UserError(
                    f"layer {layer.name} has {name} {layer.settings[name]}, {standing.name} has "
                    f"{standing.settings[name]}",
                    where=str(folder),
                    do="Build into an empty folder",
                )


def _without_incomplete(
    folder: Folder, layers: list[LayerFacts], dataset: Dataset, join: Join
) -> tuple[list[LayerFacts], dict[str, str]]:
    """The layers that can be read, and what the others lack.

    Only what was added to a cache may be incomplete: later views, and caption sets beside the first. The others go to
    the join, which refuses them. Joined by key, what was added has to have the shards of the first of its kind.
    """
    kept: list[LayerFacts] = []
    incomplete: dict[str, str] = {}
    first = {kind: next((layer.name for layer in layers if layer.kind == kind), "") for kind in ("views", "captions")}
    if any(layer.name == "captions-txt" for layer in layers):
        first["captions"] = "captions-txt"
    made = {layer.name: set(published_records(folder.child(layer.name))) for layer in layers}
    here = {shard.id for shard in dataset.shards}
    for layer in layers:
        wanted = here if join.policy == "error" else made[first[layer.kind]]
        lacking = len(wanted - made[layer.name])
        cut = layer.kind == "views" and any(name.startswith("views-") for name in incomplete)
        if layer.name == first[layer.kind] or not (lacking or cut):
            kept.append(layer)
            continue
        incomplete[layer.name] = f"{lacking} of {len(wanted)} shards lack"
        log.warning("%s/%s is left out: %d shards are missing", folder, layer.name, lacking)
    return kept, incomplete


def _teacher_folder(cache: Folder, teacher: str | None) -> Folder:
    found = teacher_names(cache)
    if not found:
        raise no_cache(cache)
    if teacher is not None and teacher not in found:
        raise UserError(f"no teacher {teacher!r}; there are {', '.join(found)}", where=str(cache))
    if teacher is None and len(found) > 1:
        raise UserError(f"several teachers: {', '.join(found)}", where=str(cache), do="Choose with --teacher-name")
    return cache.child(teacher or found[0])
