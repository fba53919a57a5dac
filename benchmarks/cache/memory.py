"""Memory of a process that reads an epoch in training order, as the cache grows to ten times the machine's memory.

    python -m benchmarks.cache.memory FOLDER SHARDS

The files are sparse: headers, keys and footers are real, the embeddings are holes, which cost no disk but become pages
of the page cache when they are read, like any others. All shards have the same keys, for the same reason. Only the
first ten views are read: the others stand for size, so that few keys make a cache of any.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache.material import CacheShape, blank_params, keys_only, settle
from benchmarks.cache.process import answer
from distill.data.order import Order
from shards import Dataset, Folder, ShardRecord, seed64
from shards.dataset import Stage, publish_whole
from shards.record import RECORDS, FileEntry
from teacher_cache import TeacherCache
from teacher_cache.dtypes import Stored, numpy_type
from teacher_cache.layout import LayerFacts, layer_table, write_layer_file

_WIDTH = 768
_USED = 10
"""Views that the epoch draws from."""
_PAGE = 4096
_BATCH = 1024
_LOOK_EVERY = 20
"""Batches between looks at the memory. Its peak as a whole is the kernel's own."""
_FIELDS = ("VmRSS", "RssAnon", "RssFile")


def views_for(times_memory: float, shards: int, rows: int) -> int:
    """How many views make `shards` files of `rows` rows hold so many times this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, round(times_memory * memory / (shards * rows * _WIDTH * 2)))


def prepare(folder: Path, shards: int, rows: int, views: int) -> int:
    """A dataset and a cache of it, of `shards` shards; returns the bytes that the cache's files seem to have."""
    data = folder / "data"
    model = keys_only(data, 1, rows).shards[0]
    entries = model.record.files
    for number in range(1, shards):
        named = tuple(FileEntry(f"{number:05d}{entry.name[5:]}", entry.bytes, entry.sha256) for entry in entries)
        for old, new in zip(entries, named, strict=True):
            (data / new.name).hardlink_to(data / old.name)
        _write_record(data, ShardRecord(number, model.record.fingerprint, "", rows, named))
    publish_whole(Folder(data), Stage(name="bench", shards=shards, rows=shards * rows))
    dataset = Dataset.open(str(data))
    shape = CacheShape(name="one", width=_WIDTH, views=views)
    return sum(_fill(layer_folder, layer, dataset) for layer_folder, layer in settle(folder / "cache", shape))


def _fill(folder: Folder, layer: LayerFacts, dataset: Dataset) -> int:
    """Copies of one file of zeros, which share nothing with it but what it holds besides zeros."""
    path, rows = folder.path / "model.arrow", dataset.shards[0].count
    zeros = np.zeros((rows, _WIDTH), numpy_type(layer.dtype))
    embeddings = [Stored(zeros, None) for _ in layer.columns]
    write_layer_file(
        str(path), layer_table(layer, dataset.shards[0].keys, embeddings, params=blank_params(layer, rows))
    )
    size = path.stat().st_size
    pages = _pages_that_hold_anything(path, size)
    for shard in dataset.shards:
        entry = FileEntry(f"{shard.id:05d}.arrow", size, f"{shard.id:064x}")
        with (folder.path / entry.name).open("wb") as file:
            file.truncate(size)
            for start, data in pages:
                file.seek(start)
                file.write(data)
        wanted = layer.shard_fingerprint(shard.content)
        _write_record(folder.path, ShardRecord(shard.id, wanted, shard.content, rows, (entry,)))
    path.unlink()
    return size * len(dataset.shards)


def _pages_that_hold_anything(path: Path, size: int) -> list[tuple[int, bytes]]:
    mapped = np.memmap(path, np.uint8, "r")
    whole = mapped[: size // _PAGE * _PAGE].reshape(-1, _PAGE)
    held = [int(page) * _PAGE for page in np.flatnonzero(whole.any(axis=1))]
    rest = size // _PAGE * _PAGE
    return [*((start, mapped[start : start + _PAGE].tobytes()) for start in held), (rest, mapped[rest:].tobytes())]


def _write_record(folder: Path, record: ShardRecord) -> None:
    (folder / RECORDS).mkdir(exist_ok=True)
    (folder / RECORDS / str(record.name)).write_text(record.to_json())


def read_epoch(folder: Path, shards: int) -> dict[str, Any]:
    """Read the first `shards` shards' view and caption of every sample, as the loader draws them."""
    whole = Dataset.open(str(folder / "data"))
    dataset = Dataset(whole.folder, whole.name, whole.shards[:shards])
    cache = TeacherCache.open(str(folder / "cache"), dataset)
    order = Order([shard.count for shard in dataset.shards], _BATCH, seed=0)
    turns = np.array([seed64("view turn", number) for number in range(4099)], np.uint64).astype(np.int64)
    highest = dict.fromkeys(_FIELDS, 0)
    start = time.process_time()
    for step in range(order.steps_per_epoch):
        places = order.batch(step)
        # As the loader: the same view of no two neighbours.
        views = turns[(places[:, 0] * dataset.shards[0].count + places[:, 1]) % len(turns)] % min(_USED, cache.views)
        cache.image(places, views)
        cache.text(places)
        if step % _LOOK_EVERY == 0:
            for name, value in _memory().items():
                highest[name] = max(highest[name], value)
    seconds = time.process_time() - start
    return {
        "shards": shards,
        "samples": order.samples,
        "peak_mb": _status("VmHWM") / 1e6,
        "anonymous_mb": highest["RssAnon"] / 1e6,
        "file_mb": highest["RssFile"] / 1e6,
        "samples_per_second": order.steps_per_epoch * _BATCH / seconds,
    }


def _memory() -> dict[str, int]:
    return {name: _status(name) for name in _FIELDS}


def _status(field: str) -> int:
    """Bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text[text.index(f"{field}:") :].split(maxsplit=2)[1]) * 1024


if __name__ == "__main__":
    answer(read_epoch(Path(sys.argv[1]), int(sys.argv[2])))
