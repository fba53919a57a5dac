"""A layer's files, memory-mapped: rows gathered from all of them at once, without a copy but the rows' own."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided

from shards import Dataset, Folder, ShardRecord, UserError
from shards.arrow_files import read_arrow, refuse_other_columns
from shards.shard import map_file
from teacher_cache.dtypes import arrow_type, numpy_type, widened
from teacher_cache.join import Joined, join_layer
from teacher_cache.layout import LayerFacts
from teacher_cache.settings import Join
from teacher_cache.views.policy import ViewPolicy

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
        mapped = map_file(folder, entry, "Run `clipstill cache build` again")
        try:
            table = read_arrow(mapped)
            meta = table.schema.metadata or {}
            made = meta.get(b"layer", b"").decode(errors="replace")
            if made != layer.fingerprint:
                raise ValueError(f"was made for layer {made}, {layer.name} is {layer.fingerprint}")
            if table.num_rows != record.count:
                raise ValueError(f"holds {table.num_rows} rows, its record says {record.count}")
            refuse_other_columns(table, _schema(layer, width))
            columns = [_flat(table, layer.column(index)) for index in layer.columns]
            self.values = _together(columns, width, layer, pa.py_buffer(mapped))
        except ValueError as error:
            raise UserError(f"{entry.name} {error}", where=str(folder), do="Build this cache again") from None
        self.keys_digest = meta.get(b"keys", b"").decode(errors="replace")
        self.rows = table.num_rows
        self._table = table
        self._dtype = layer.dtype
        self._params: dict[int, npt.NDArray[np.void]] = {}
        self._names = [layer.column(index) for index in layer.columns]
        self.address: int = self.values.__array_interface__["data"][0]
        self.step: int = self.values.strides[0]
        self.row_bytes: int = width * self.values.itemsize

    @property
    def keys(self) -> list[str]:
        keys: list[str] = self.key_array().to_pylist()
        return keys

    def key_array(self) -> pa.StringArray:
        """The keys in order, as Arrow has them."""
        return _flat(self._table, "key")

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


class Layer:
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
        self._numbers = np.array([shard.id for shard in dataset.shards], np.int64)

    def _keys(self, record: ShardRecord) -> pa.StringArray:
        return LayerFile(self.folder, self.facts, record, self._width).key_array()

    def first_key(self, record: ShardRecord) -> str:
        return str(self._keys(record)[0])

    def find(self, place: int, row: int) -> tuple[LayerFile, int]:
        """The file that holds a sample, and its row there."""
        rows = self.joined.rows(place)
        if rows is None:
            return self._open(self._dataset.shards[place].id, place), row
        number, at = rows[row].tolist()
        assert number >= 0, "a sample without embeddings"
        return self._open(number, None), at

    def fetch(self, place: int) -> None:
        for number in self.joined.files(place):
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
        in_order = self.joined.in_order[places[:, 0]]
        numbers, rows = self._numbers[places[:, 0]], places[:, 1]
        if not in_order.all():
            rows = rows.copy()
            for place in np.unique(places[~in_order, 0]).tolist():
                chosen = places[:, 0] == place
                joined = self.joined.rows(place)
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
    touched. Measured beside the plain way, an indexing a file, in one process and in turns: of batches of 1,024 samples
    from 16 files 1.8 times as many a second of one core (196,000 against 107,000; the goal is 200,000 on an idle one),
    and the more the more files there are. The caller holds the files.
    """
    kind = lowest.values.dtype
    at = (addresses - lowest.address) // kind.itemsize
    whole = lowest.values[0].view(np.dtype((np.void, lowest.row_bytes)))[:, 0]
    memory = as_strided(whole, (int(at.max()) + 1,), (kind.itemsize,), writeable=False)
    found: Values = memory[at].view(kind).reshape(len(at), -1)
    return found


def _schema(layer: LayerFacts, width: int) -> pa.Schema:
    """The columns of a layer's file."""
    wanted = {"key": pa.string()}
    settings = layer.settings
    packed = ViewPolicy.from_identity(settings["policy"]).dtype.itemsize if layer.kind == "views" else 0
    for index in layer.columns:
        name = layer.column(index)
        wanted[name] = pa.list_(arrow_type(layer.dtype), width)
        if layer.dtype == "int8":
            wanted[f"{name}_scale"] = pa.float32()
        if layer.kind == "views":
            wanted[f"params_{index:03d}"] = pa.binary(packed)
        elif settings["source"]["kind"] == "table":
            wanted[f"text_{index:03d}"] = pa.string()
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in wanted.items()])


def _flat(table: pa.Table, name: str) -> Any:
    chunks = table[name].chunks or [table[name].combine_chunks()]
    if len(chunks) > 1:
        raise ValueError(f"has {name} in {len(chunks)} pieces, it should be one")
    return chunks[0]


def _together(columns: list[Any], width: int, layer: LayerFacts, mapped: pa.Buffer) -> npt.NDArray[Any]:
    """(columns, rows, D) over the memory of these Arrow arrays, which lie at equal distances in the mapped file.

    Raises `ValueError` if they do not: rows are read by their addresses.
    """
    rows = len(columns[0])
    kind = numpy_type(layer.dtype)
    if any(column.values.null_count for column in columns):
        raise ValueError("has embeddings that are null")
    parts = [column.values.to_numpy(zero_copy_only=True).view(kind).reshape(rows, width) for column in columns]
    inside = range(mapped.address, mapped.address + mapped.size)
    if rows and not all(part.ctypes.data in inside and part.ctypes.data % 8 == 0 for part in parts):
        raise ValueError("has columns that are compressed, or not at whole words")
    if len(parts) == 1 or rows == 0:
        return np.stack(parts) if rows == 0 else parts[0][None]
    starts = [part.__array_interface__["data"][0] for part in parts]
    steps = set(np.diff(starts).tolist())
    if len(steps) != 1 or min(steps) <= 0:
        raise ValueError(f"has columns of {layer.name} that are not evenly spaced")
    (step,) = steps
    together = as_strided(parts[0], (len(parts), rows, width), (step, *parts[0].strides), writeable=False)
    # A strided view does not keep the memory that it reaches beyond its base: this one holds the first column's buffer,
    # which is the whole mapped file.
    return together
