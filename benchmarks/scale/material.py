"""What is read: one real shard and one real file of each layer, each under tens of thousands of names."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.cache.material import CacheShape, SampleBytes, blank_params, random_rows, settle, write_samples
from shards import Dataset, FileEntry, Folder, Shard, ShardRecord
from shards.dataset import Stage, publish_whole
from shards.fingerprint import sha256_file
from shards.record import MANIFEST, RECORDS
from teacher_cache.dtypes import store
from teacher_cache.layout import LayerFacts, layer_table, write_layer_file

SHAPE = CacheShape(name="teacher", width=16, views=1)
_LINKS = 30_000
"""Names that a file is given; file systems bound them."""


def real_shard(folder: Path, rows: int) -> Shard:
    """One shard of so many little pictures."""
    body = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(body, "JPEG")
    return write_samples(folder, [[SampleBytes(body.getvalue(), f"picture {row}") for row in range(rows)]]).shards[0]


def simulate(folder: Path, shard: Shard, shards: int) -> None:
    """A dataset of so many shards, each of which is this one under another name."""
    link = _Links(shard.folder.path, folder)

    def record(number: int) -> ShardRecord:
        files = tuple(replace(entry, name=f"{number:05d}{entry.name[5:]}") for entry in shard.record.files)
        for entry, of in zip(files, shard.record.files, strict=True):
            link(of.name, entry.name)
        return replace(shard.record, shard=number, files=files)

    _publish(folder, shards, record)
    stage = Stage(name=folder.name, shards=shards, rows=shards * shard.count)
    publish_whole(Folder(folder), stage)


def simulate_cache(cache: Path, dataset: Dataset, lacking: Callable[[int], bool] = lambda _: False) -> None:
    """A teacher's cache of a dataset of equal shards; `lacking` says of which it has no file."""
    for place, layer in settle(cache, SHAPE):
        folder, first = place.path, dataset.shards[0]
        own = folder / "one.arrow"
        _write_file(own, layer, first.keys)
        link, said = _Links(folder, folder), _entry(own)

        def record(
            number: int, layer: LayerFacts = layer, link: _Links = link, one: FileEntry = said
        ) -> ShardRecord | None:
            if lacking(number):
                return None
            shard = dataset.shards[number]
            entry = replace(one, name=f"{number:05d}.arrow")
            link(one.name, entry.name)
            return ShardRecord(number, layer.shard_fingerprint(shard.content), shard.content, shard.count, (entry,))

        _publish(folder, len(dataset.shards), record)


def _write_file(path: Path, layer: LayerFacts, keys: list[str]) -> None:
    """A layer's file for these samples."""
    count = len(keys)
    embeddings = [store(random_rows(column, count, SHAPE.width), layer.dtype) for column in layer.columns]
    write_layer_file(str(path), layer_table(layer, keys, embeddings, params=blank_params(layer, count)))


def write_cut_otherwise(scratch: Path, shard: Shard, shards: int) -> str:
    """A dataset of so many shards with keys of their own, and in `cut-cache` a cache of its samples in smaller shards.

    Returns the dataset's name in `scratch`.
    """
    rows, index = shard.count, _read_index(shard)
    folder = scratch / "keyed"
    link = _Links(shard.folder.path, folder)
    tar = shard.record.file(".tar")

    def record(number: int) -> ShardRecord:
        link(tar.name, f"{number:05d}.tar")
        path = folder / f"{number:05d}.index.arrow"
        keys = pa.array(_keys(number * rows, rows), pa.string())
        table = index.set_column(index.schema.get_field_index("key"), index.schema.field("key"), keys)
        with pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table)
        files = (replace(tar, name=f"{number:05d}.tar"), _entry(path))
        return replace(shard.record, shard=number, files=files)

    _publish(folder, shards, record)
    publish_whole(Folder(folder), Stage(name="keyed", shards=shards, rows=shards * rows))
    cut = rows * 4 // 5
    for place, layer in settle(scratch / "cut-cache", SHAPE):

        def file(number: int, layer: LayerFacts = layer, folder: Path = place.path) -> ShardRecord:
            path = folder / f"{number:05d}.arrow"
            _write_file(path, layer, _keys(number * cut, cut))
            return ShardRecord(number, "f" * 16, "0" * 16, cut, (_entry(path),))

        _publish(place.path, shards * rows // cut, file)
    return "keyed"


def _read_index(shard: Shard) -> pa.Table:
    with pa.ipc.open_file(str(shard.folder.path / shard.record.file(".index.arrow").name)) as reader:
        return reader.read_all()


def _keys(first: int, count: int) -> list[str]:
    return [f"sample-{number:012d}" for number in range(first, first + count)]


def _entry(path: Path) -> FileEntry:
    return FileEntry(path.name, path.stat().st_size, sha256_file(path))


class _Links:
    """Gives files of a folder further names in another, by copies where a file has as many as it may have."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target
        self._given: dict[str, int] = {}
        self._from: dict[str, Path] = {}
        target.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, other: str) -> None:
        given = self._given.get(name, 0)
        if given % _LINKS == 0:
            (self._target / other).write_bytes((self._source / name).read_bytes())
            self._from[name] = self._target / other
        else:
            os.link(self._from[name], self._target / other)
        self._given[name] = given + 1


def _publish(folder: Path, shards: int, record_of: Callable[[int], ShardRecord | None]) -> None:
    records = folder / RECORDS
    records.mkdir(parents=True)
    with (records / MANIFEST).open("w") as manifest:
        for number in range(shards):
            record = record_of(number)
            if record is not None:
                manifest.write(record.to_json() + "\n")
                # Names are what is listed; of what is within them the manifest tells.
                (records / str(record.name)).touch()
