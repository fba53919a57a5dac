"""What is read: one real shard and one real file of each layer, under the names of tens of thousands, with a record each."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
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
        write_file(own, layer, first)
        size, digest = own.stat().st_size, sha256_file(own)
        link = _Links(folder, folder)

        def record(
            number: int, layer: LayerFacts = layer, link: _Links = link, said: tuple[int, str] = (size, digest)
        ) -> ShardRecord | None:
            if lacking(number):
                return None
            shard = dataset.shards[number]
            entry = FileEntry(f"{number:05d}.arrow", *said)
            link("one.arrow", entry.name)
            return ShardRecord(number, layer.shard_fingerprint(shard.content), shard.content, shard.count, (entry,))

        _publish(folder, len(dataset.shards), record)


def write_file(path: Path, layer: LayerFacts, shard: Shard) -> None:
    """A layer's file for the samples of a shard."""
    embeddings = [store(random_rows(column, shard.count, SHAPE.width), layer.dtype) for column in layer.columns]
    write_layer_file(str(path), layer_table(layer, shard.keys, embeddings, params=blank_params(layer, shard.count)))


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
