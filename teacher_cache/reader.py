"""Read a cache beside its dataset: refuse what does not belong together, then gather rows from memory maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards import Dataset, Folder, Shard, ShardRecord, UserError, published_records, read_records
from shards.reader import map_file
from teacher_cache.layout import (
    Kind,
    LayerFacts,
    TeacherFacts,
    embedding_column,
    read_layers,
    read_teacher,
)
from teacher_cache.views import View, ViewPolicy


class TeacherCache:
    """One teacher's embeddings of one dataset.

    `teacher` says whose; `views` is K, the number of cached views; `policy` how they were drawn. Rows are a shard's
    sample numbers, in the order of its tar.
    """

    def __init__(self, folder: Folder, teacher: TeacherFacts, layers: list[_Layer]) -> None:
        self.folder, self.teacher = folder, teacher
        self._views = {index: layer for layer in layers for index in layer.facts.columns if layer.facts.kind == "views"}
        (self._captions,) = (layer for layer in layers if layer.facts.kind == "captions")
        self.views = len(self._views)
        self.policy = ViewPolicy.from_identity(self._views[0].facts.settings["policy"])
        self.layers = tuple(layer.facts for layer in layers)

    @staticmethod
    def open(url: str, dataset: Dataset, teacher: str | None = None) -> TeacherCache:
        """Open the cache at `url` for `dataset`; `teacher` names the folder when the cache holds several.

        Raises `UserError` if there is no cache, no such teacher, a layer or shard is missing, or the cache was built
        from other shards; the message names both values.
        """
        folder = _teacher_folder(Folder(url), teacher)
        facts = read_teacher(folder)
        assert facts is not None
        views, captions = read_layers(folder, "views"), read_layers(folder, "captions")
        have = [index for layer in views for index in layer.columns]
        if not have or have != list(range(len(have))) or len(captions) != 1:
            raise UserError(
                f"it holds views {have} and {len(captions)} caption sets; needed are views from 0 on and one set",
                where=str(folder),
                do="Finish it with `clipstill cache build`",
            )
        for layer in (*views, *captions):
            if layer.teacher != facts.fingerprint:
                raise UserError(
                    f"layer {layer.name} was made by teacher {layer.teacher}, {folder.url} holds {facts.fingerprint}",
                    where=str(folder),
                    do="Build into an empty folder",
                )
        return TeacherCache(folder, facts, [_open_layer(folder, layer, dataset) for layer in (*views, *captions)])

    def image(self, shard: Shard, rows: Sequence[int], view: int) -> npt.NDArray[np.float32]:
        """(len(rows), D) float32, each row of unit norm: the teacher's embeddings of view `view`."""
        return _unit(self._views[view].column(shard, "views", view)[np.asarray(rows)])

    def text(self, shard: Shard, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """(len(rows), D) float32, each row of unit norm: the teacher's embeddings of the captions."""
        return _unit(self._captions.column(shard, "captions", 0)[np.asarray(rows)])

    def release(self, shard: Shard) -> None:
        """Let go of a shard's mapped files; the next use maps them again. Safe while other threads read."""
        for layer in {*self._views.values(), self._captions}:
            layer.release(shard)

    def view(self, shard: Shard, row: int, view: int) -> View:
        """The stored parameters of one view."""
        crops, flips = self._views[view].crops(shard, view)
        left, top, width, height = (float(value) for value in crops[row])
        return View(left, top, width, height, bool(flips[row]))


def _unit(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    # Rounding to float16 shortens a vector by up to 1e-3; at logit scale 100 that would move logits by 0.025.
    wide = rows.astype(np.float32)
    norms: npt.NDArray[np.float32] = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = wide / norms
    return unit


class _Layer:
    """One layer's files, mapped on first use and kept. Safe to use from several threads."""

    def __init__(self, folder: Folder, facts: LayerFacts, records: dict[int, ShardRecord]) -> None:
        self.folder, self.facts, self.records = folder, facts, records
        self._columns: dict[int, dict[str, npt.NDArray[Any]]] = {}

    def column(self, shard: Shard, kind: Kind, index: int) -> npt.NDArray[np.float16]:
        return self._open(shard)[embedding_column(kind, index)]

    def crops(self, shard: Shard, view: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        columns = self._open(shard)
        return columns[f"crop_{view:03d}"], columns[f"flip_{view:03d}"]

    def release(self, shard: Shard) -> None:
        self._columns.pop(shard.id, None)

    def _open(self, shard: Shard) -> dict[str, npt.NDArray[Any]]:
        held = self._columns.get(shard.id)
        if held is None:
            held = self._columns[shard.id] = map_layer_file(self.folder, self.records[shard.id], shard)
        return held


def map_layer_file(folder: Folder, record: ShardRecord, shard: Shard) -> dict[str, npt.NDArray[Any]]:
    """The columns of one file as arrays over its memory map: (rows, D) float16, (rows, 4) float32, (rows,) bool.

    Raises `UserError` if the file is absent, has another size than recorded, or its keys are not the shard's.
    """
    entry = record.file(".arrow")
    mapped = map_file(folder, entry, "run `clipstill cache build` again")
    table = pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
    keys = (table.schema.metadata or {}).get(b"keys", b"").decode()
    if keys != shard.keys_digest or table.num_rows != shard.count:
        raise UserError(
            f"{entry.name} holds {table.num_rows} rows of keys {keys}, shard {shard.id:05d} has {shard.count} of "
            f"{shard.keys_digest}",
            where=str(folder),
            do="The cache belongs to other shards: build it for these",
        )
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in table.column_names:
        if name == "key":
            continue
        array = table[name].combine_chunks() if table[name].num_chunks != 1 else table[name].chunk(0)
        if pa.types.is_fixed_size_list(array.type):
            width = array.type.list_size
            columns[name] = array.values.to_numpy(zero_copy_only=True).reshape(-1, width)
        else:
            columns[name] = array.to_numpy(zero_copy_only=False)
    return columns


def _teacher_folder(cache: Folder, teacher: str | None) -> Folder:
    found = [name for name in cache.names() if cache.child(name).exists("teacher.json")]
    if not found:
        raise UserError("no teacher cache here", where=str(cache), do="Make one with `clipstill cache build`")
    if teacher is not None and teacher not in found:
        raise UserError(f"no teacher {teacher!r}; there are {', '.join(found)}", where=str(cache))
    if teacher is None and len(found) > 1:
        raise UserError(f"several teachers: {', '.join(found)}", where=str(cache), do="Choose with --teacher-name")
    return cache.child(teacher or found[0])


def _open_layer(folder: Folder, facts: LayerFacts, dataset: Dataset) -> _Layer:
    place = folder.child(facts.name)
    names = published_records(place)
    missing = [shard.id for shard in dataset.shards if shard.id not in names]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(dataset.shards)} shards are not in the cache (first: {missing[0]:05d})",
            where=str(place),
            do="Run `clipstill cache build` again; it goes on where it stopped",
        )
    records = read_records(place, [names[shard.id] for shard in dataset.shards])
    for shard in dataset.shards:
        record = records[shard.id]
        if record.fingerprint != facts.shard_fingerprint(shard.content):
            raise UserError(
                f"shard {shard.id:05d} was cached from content {record.parent} (dataset {facts.dataset!r}), "
                f"{dataset.folder} holds {shard.content} (dataset {dataset.name!r})",
                where=str(place),
                do="Use the cache of these shards, or build one for them",
            )
    return _Layer(place, facts, records)
