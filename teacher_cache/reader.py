"""Read a cache beside its dataset: refuse what does not belong together, then gather rows from memory maps.

Samples are named by (place, row): the shard's place in `dataset.shards`, and the sample's row in that shard.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided

from shards import Dataset, Folder, ShardRecord, UserError, fingerprint, published_records
from shards.reader import map_file
from teacher_cache.captions import source_of
from teacher_cache.dtypes import arrow_type, load, numpy_type, widened
from teacher_cache.join import Join, Joined, join_layer
from teacher_cache.layout import TEACHER, LayerFacts, TeacherFacts, read_layers, read_teacher, teacher_names
from teacher_cache.views import VIEWS_VERSION, View, ViewPolicy

log = logging.getLogger(__name__)

_OPEN_FILES = 64
"""A layer's mapped files: a process may open about a thousand, and what is mapped counts as its memory."""

Places = npt.NDArray[np.int64]
"""(n, 2): shard place and row of each sample."""

Values = npt.NDArray[np.generic]
"""(n, D) in the type of the files."""


class LayerFile:
    """One mapped file of a layer; `columns` of the embeddings come as (columns, rows, D) without a copy.

    Raises `UserError` if the file is absent, has another size than recorded, was made for another layer, or holds
    other columns than the layer says.
    """

    def __init__(self, folder: Folder, layer: LayerFacts, record: ShardRecord, width: int) -> None:
        entry = record.file(".arrow")
        mapped = map_file(folder, entry, "run `clipstill cache build` again")
        table = pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
        meta = table.schema.metadata or {}
        self.keys_digest = meta.get(b"keys", b"").decode()
        made = meta.get(b"layer", b"").decode()
        problem = None
        if made != layer.fingerprint:
            problem = f"was made for layer {made}, {layer.name} is {layer.fingerprint}"
        elif table.num_rows != record.count:
            problem = f"holds {table.num_rows} rows, its record says {record.count}"
        else:
            wanted = pa.list_(arrow_type(layer.dtype), width)
            for index in layer.columns:
                name = layer.column(index)
                kind = table.schema.field(name).type if name in table.schema.names else "missing"
                if kind != wanted:
                    problem = f"{name} is {kind}, the layer's are {wanted}"
                    break
        if problem:
            raise UserError(f"{entry.name} {problem}", where=str(folder), do="Build this cache again")
        self.rows = table.num_rows
        self._table = table
        self._dtype = layer.dtype
        self._params: dict[int, npt.NDArray[np.void]] = {}
        self._names = [layer.column(index) for index in layer.columns]
        self.values = _together([_flat(table, name).values for name in self._names], self.rows, width, layer)
        self.address: int = self.values.__array_interface__["data"][0]
        self.step: int = self.values.strides[0]
        self.row_bytes: int = width * self.values.itemsize

    @property
    def keys(self) -> list[str]:
        keys: list[str] = self._table["key"].to_pylist()
        return keys

    def norms(self, column: int) -> npt.NDArray[np.float32]:
        """(rows,) as stored, not made unit; `column` counted from the layer's first."""
        wide = widened(self.values[column], self._dtype)
        name = f"{self._names[column]}_scale"
        if name in self._table.column_names:
            wide = wide * _flat(self._table, name).to_numpy()[:, None]
        norms: npt.NDArray[np.float32] = np.linalg.norm(wide, axis=1)
        return norms

    def params(self, index: int, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """(rows,) packed parameters of view `index`."""
        held = self._params.get(index)
        if held is None:
            array = _flat(self._table, f"params_{index:03d}")
            held = self._params[index] = np.frombuffer(array.buffers()[1], dtype, count=self.rows)
        return held

    def text(self, index: int, row: int) -> str | None:
        """The caption that is kept in the layer itself, None if the shards have it."""
        name = f"text_{index:03d}"
        return self._table[name][row].as_py() if name in self._table.column_names else None


class TeacherCache:
    """One teacher's embeddings of one dataset.

    `teacher` says whose; `views` is K, the number of cached views (0 of a text-only teacher), `policy` how they were
    drawn; `captions` names the caption sets with how many each sample has. `incomplete`: layers that are being added,
    or were given up, with what they lack; they are left out. `missing` counts the samples without embeddings. Safe to
    use from several threads.
    """

    def __init__(self, folder: Folder, teacher: TeacherFacts, dataset: Dataset, layers: list[_Layer]) -> None:
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
        for place, shard in enumerate(dataset.shards):
            present = np.logical_and.reduce([layer.joined.present(place, shard.count) for layer in layers])
            if not present.all():
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
        opened = [_Layer(folder.child(layer.name), layer, facts.embed_dim, dataset, join) for layer in layers]
        cache = TeacherCache(folder, facts, dataset, opened)
        cache.incomplete = incomplete
        if cache.missing == len(dataset):
            raise cache._nothing_in_common(opened[0])
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
    def kept(self) -> list[npt.NDArray[np.int64]]:
        """For each shard the rows that take part."""
        left_out = self._present if self._leaves_out else {}
        return [
            np.flatnonzero(left_out[place]) if place in left_out else np.arange(shard.count)
            for place, shard in enumerate(self.dataset.shards)
        ]

    @property
    def policy(self) -> ViewPolicy:
        """How the views were drawn. Raises `UserError` if there are none."""
        if self._policy is None:
            raise self._no_views()
        return self._policy

    def records(self, layer: str) -> Mapping[int, ShardRecord]:
        """File number → record, of a layer by its name."""
        (found,) = (held for held in (*self._views, *self._captions.values()) if held.facts.name == layer)
        return found.joined.records

    def content(self, source: str = "txt") -> str:
        """16 hex digits over the views, the captions `source`, and the samples that take part: equal for equal data."""
        layers = [*self._views, *([self._captions[source]] if source in self._captions else [])]
        files = [[layer.facts.fingerprint, *(r.content for r in layer.joined.records.values())] for layer in layers]
        return fingerprint([files, [rows.tolist() for rows in self.kept] if self.missing else None])

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
        found = self.stored_views(np.array([(place, row)]), np.array([view]))[0]
        assert found is not None, "a sample without embeddings"
        return found

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

    def _nothing_in_common(self, layer: _Layer) -> UserError:
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

    def _caption_layer(self, source: str) -> _Layer:
        if source not in self._captions:
            lacks = self.incomplete.get(f"captions-{source}", "no captions")
            raise UserError(
                f"{lacks} {source!r}; there are {', '.join(self._captions) or 'none'}",
                where=str(self.folder),
                do="Add them with `clipstill cache build --captions`",
            )
        return self._captions[source]


class _Layer:
    """One layer's files, mapped on first use; the ones used longest ago are let go."""

    def __init__(self, folder: Folder, facts: LayerFacts, width: int, dataset: Dataset, join: Join) -> None:
        self.folder, self.facts, self._width, self._dataset = folder, facts, width, dataset
        self._files: dict[int, LayerFile] = {}
        self._lock = threading.Lock()
        self.joined: Joined = join_layer(folder, facts, dataset, join, self._keys)
        # By file number: where its first row lies in memory (0: not mapped), bytes from column to column, and when it
        # was used last.
        most = max(self.joined.records, default=0) + 1
        self._starts, self._steps, self._used = (np.zeros(most, np.int64) for _ in range(3))
        self._clock = 0
        self._in_order = np.array([rows is None for rows in self.joined.places], np.bool_)
        self._numbers = np.array([shard.id for shard in dataset.shards], np.int64)

    def _keys(self, record: ShardRecord) -> list[str]:
        return LayerFile(self.folder, self.facts, record, self._width).keys

    def first_key(self, record: ShardRecord) -> str:
        return self._keys(record)[0]

    def find(self, place: int, row: int) -> tuple[LayerFile, int]:
        """The file that holds a sample, and its row there."""
        rows = self.joined.places[place]
        if rows is None:
            return self._open(self._dataset.shards[place].id, place), row
        number, at = rows[row].tolist()
        assert number >= 0, "a sample without embeddings"
        return self._open(number, None), at

    def fetch(self, place: int) -> None:
        rows = self.joined.places[place]
        numbers = [self._dataset.shards[place].id] if rows is None else np.unique(rows[:, 0]).tolist()
        for number in numbers:
            if number >= 0:
                entry = self.joined.records[number].file(".arrow")
                self.folder.fetch(entry.name, entry.sha256)

    def gather(self, places: Places, columns: npt.NDArray[np.int64]) -> Values:
        """(n, D) rows of these samples, zeros where a sample has none; `columns` counted from the layer's first."""
        numbers, rows, in_order = self._files_of(places)
        present = numbers >= 0
        if not present.all():
            out = np.zeros((len(places), self._width), numpy_type(self.facts.dtype))
            if present.any():
                out[present] = self.gather(places[present], columns[present])
            return out
        if not len(numbers):
            return np.empty((0, self._width), numpy_type(self.facts.dtype))
        # The files that are open are held here, so that none is unmapped while it is read.
        with self._lock:
            held = dict(self._files)
            starts, steps = self._starts[numbers], self._steps[numbers]
            self._clock += 1
            self._used[numbers] = self._clock
        if not starts.all():
            found, first = np.unique(numbers, return_index=True)
            for number, at in zip(found.tolist(), first.tolist(), strict=True):
                held[number] = self._open(number, int(places[at, 0]) if in_order[at] else None)
                starts[numbers == number], steps[numbers == number] = held[number].address, held[number].step
        lowest = held[int(numbers[starts.argmin()])]
        return _rows_at(lowest, starts + columns * steps + rows * lowest.row_bytes)

    def _files_of(self, places: Places) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """File number and row of each sample, and whether its file has the very rows of its shard."""
        in_order = self._in_order[places[:, 0]]
        numbers, rows = self._numbers[places[:, 0]], places[:, 1]
        if not in_order.all():
            rows = rows.copy()
            for place in np.unique(places[~in_order, 0]).tolist():
                chosen = places[:, 0] == place
                joined = self.joined.places[place]
                assert joined is not None
                both = joined[rows[chosen]]
                numbers[chosen], rows[chosen] = both[:, 0], both[:, 1]
        return numbers, rows, in_order

    def _open(self, number: int, place: int | None) -> LayerFile:
        """The file `number`; with `place`, refused unless its keys are that shard's."""
        with self._lock:
            self._clock += 1
            self._used[number] = self._clock
            held = self._files.get(number)
        if held is not None:
            return held
        file = LayerFile(self.folder, self.facts, self.joined.records[number], self._width)
        if place is not None:
            shard = self._dataset.shards[place]
            if file.keys_digest != shard.keys_digest:
                raise UserError(
                    f"{number:05d}.arrow holds {file.rows} rows of keys {file.keys_digest}, shard {shard.id:05d} has "
                    f"{shard.count} of {shard.keys_digest}",
                    where=str(self.folder),
                    do="The cache belongs to other shards: build it for these",
                )
        with self._lock:
            self._files[number] = file
            self._starts[number], self._steps[number] = file.address, file.step
            while len(self._files) > _OPEN_FILES:
                oldest = min(self._files, key=self._used.__getitem__)
                del self._files[oldest]
                self._starts[oldest] = 0
        return file


def _rows_at(lowest: LayerFile, addresses: npt.NDArray[np.int64]) -> Values:
    """(n, D): the rows at these addresses in memory, none below those of the file `lowest`.

    One indexing for all files, over the memory from the lowest to the highest, of which nothing but these rows is
    touched: a row costs little more than its copy, where an indexing a file costs that again in calls. The caller holds
    the files.
    """
    kind = lowest.values.dtype
    at = (addresses - lowest.address) // kind.itemsize
    whole = lowest.values[0].view(np.dtype((np.void, lowest.row_bytes)))[:, 0]
    memory = as_strided(whole, (int(at.max()) + 1,), (kind.itemsize,), writeable=False)
    found: Values = memory[at].view(kind).reshape(len(at), -1)
    return found


def _flat(table: pa.Table, name: str) -> Any:
    (chunk,) = table[name].chunks if table[name].num_chunks else (table[name].combine_chunks(),)
    return chunk


def _together(columns: list[Any], rows: int, width: int, layer: LayerFacts) -> npt.NDArray[Any]:
    """(columns, rows, D) over the memory of these Arrow arrays, which lie at equal distances in the file."""
    kind = numpy_type(layer.dtype)
    parts = [column.to_numpy(zero_copy_only=True).view(kind).reshape(rows, width) for column in columns]
    if len(parts) == 1 or rows == 0:
        return np.stack(parts) if rows == 0 else parts[0][None]
    starts = [part.__array_interface__["data"][0] for part in parts]
    steps = set(np.diff(starts).tolist())
    assert len(steps) == 1, f"columns of {layer.name} are not evenly spaced"
    (step,) = steps
    together = as_strided(parts[0], (len(parts), rows, width), (step, *parts[0].strides), writeable=False)
    # A strided view does not keep the memory that it reaches beyond its base: this one holds the first column's buffer,
    # which is the whole mapped file.
    return together


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
        version = layer.settings["policy"]["version"] if layer.kind == "views" else VIEWS_VERSION
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
    the join, which refuses them.
    """
    kept: list[LayerFacts] = []
    incomplete: dict[str, str] = {}
    first = {kind: next((layer.name for layer in layers if layer.kind == kind), "") for kind in ("views", "captions")}
    if any(layer.name == "captions-txt" for layer in layers):
        first["captions"] = "captions-txt"
    for layer in layers:
        names = published_records(folder.child(layer.name))
        lacking = sum(shard.id not in names for shard in dataset.shards)
        is_whole = lacking == 0 if join.policy == "error" else bool(names)
        cut = layer.kind == "views" and any(name.startswith("views-") for name in incomplete)
        if layer.name == first[layer.kind] or (is_whole and not cut):
            kept.append(layer)
            continue
        incomplete[layer.name] = f"{lacking} of {len(dataset.shards)} shards lack"
        log.warning("%s/%s is left out: %d shards are missing", folder, layer.name, lacking)
    return kept, incomplete


def _teacher_folder(cache: Folder, teacher: str | None) -> Folder:
    found = teacher_names(cache)
    if not found:
        raise UserError("no teacher cache here", where=str(cache), do="Make one with `clipstill cache build`")
    if teacher is not None and teacher not in found:
        raise UserError(f"no teacher {teacher!r}; there are {', '.join(found)}", where=str(cache))
    if teacher is None and len(found) > 1:
        raise UserError(f"several teachers: {', '.join(found)}", where=str(cache), do="Choose with --teacher-name")
    return cache.child(teacher or found[0])
