"""Samples a second of one core, at random places from the page cache, beside DataCompDR's files.

    python -m benchmarks.cache.read FOLDER BATCHES SAMPLES ROUNDS

A sample is what a step of MobileCLIP's training needs of two teachers of 768 numbers: one view, the caption and one
synthetic caption, six rows. Rates are by CPU time: one thread that waits for nothing, so other processes' use of the
core does not count.

The rivals are read as fast as their format allows: no tar is scanned, each sample's place is known, one pread gets its
bytes. They then unpack every view and caption, because npz and pth.gz have no way to a part of an array.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.cache.material import CacheShape, keys_only, random_rows, write_cache
from benchmarks.cache.process import answer
from benchmarks.record import spread
from shards import Dataset
from teacher_cache import TeacherCache

Rival = Literal["npz", "pth.gz"]

_BATCH = 1024
_WIDTH, _VIEWS, _SYNTHETIC = 768, 10, 5
_TEACHERS = ("one", "two")
_ROWS = 3 * len(_TEACHERS)
"""Rows of a sample: of each teacher a view and two captions."""

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Places (n, 2), views (n,), synthetic captions (n,)."""


def prepare(folder: Path, shards: int, rows: int, rival_samples: int) -> None:
    """Write the same kind of data in all three forms."""
    dataset = keys_only(folder / "data", shards, rows)
    pool = random_rows(0, 2 * rows, _WIDTH)
    for name in _TEACHERS:
        write_cache(
            folder / "cache", dataset, CacheShape(name=name), lambda _, shard, column: pool[shard + column :][:rows]
        )
    _write_rival(folder, "npz", rival_samples, pool)
    _write_rival(folder, "pth.gz", rival_samples, pool)


def _write_rival(folder: Path, kind: Rival, samples: int, pool: npt.NDArray[np.float32]) -> None:
    """One tar of DataCompDR's members: two teachers side by side, ten views, six captions."""
    places = []
    with tarfile.open(folder / f"{kind}.tar", "w") as tar:
        for number in range(samples):
            rows = pool[np.random.default_rng(number).integers(0, len(pool), (16, 2))].reshape(16, 2 * _WIDTH)
            data = _packed(kind, rows[:_VIEWS], rows[_VIEWS:])
            member = tarfile.TarInfo(f"{number:09d}.{kind}")
            member.size = len(data)
            places.append((tar.fileobj.tell() + tarfile.BLOCKSIZE, len(data)))
            tar.addfile(member, io.BytesIO(data))
    np.save(folder / f"{kind}.npy", np.array(places))


def _packed(kind: Rival, images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32]) -> bytes:
    sink = io.BytesIO()
    if kind == "npz":
        np.savez(sink, image_emb=images, text_emb=texts)
        return sink.getvalue()
    torch.save({"image_emb": torch.tensor(images).bfloat16(), "text_emb": torch.tensor(texts).bfloat16()}, sink)
    return gzip.compress(sink.getvalue())


class _Ours:
    """Both teachers' caches of one dataset."""

    def __init__(self, folder: Path) -> None:
        dataset = Dataset.open(str(folder / "data"))
        self.caches = [TeacherCache.open(str(folder / "cache"), dataset, name) for name in _TEACHERS]
        self._shape = len(dataset.shards), dataset.shards[0].count

    def batches(self, count: int, seed: int) -> list[Batch]:
        random = np.random.default_rng(seed)
        return [
            (
                np.stack([random.integers(0, size, _BATCH) for size in self._shape], axis=1),
                random.integers(0, _VIEWS, _BATCH),
                random.integers(0, _SYNTHETIC, _BATCH),
            )
            for _ in range(count)
        ]

    def stored(self, batch: Batch) -> None:
        places, views, captions = batch
        for cache in self.caches:
            cache.image_stored(places, views)
            cache.text_stored(places)
            cache.text_stored(places, captions, "json-syn")

    def unit(self, batch: Batch) -> None:
        places, views, captions = batch
        for cache in self.caches:
            cache.image(places, views)
            cache.text(places)
            cache.text(places, captions, "json-syn")


class _Theirs:
    """One tar, read through an index."""

    def __init__(self, folder: Path, kind: Rival) -> None:
        self._file = os.open(folder / f"{kind}.tar", os.O_RDONLY)
        self._places: list[tuple[int, int]] = [
            (start, size) for start, size in np.load(folder / f"{kind}.npy").tolist()
        ]
        self._unpack = _npz if kind == "npz" else _pth_gz

    def read(self, sample: list[int]) -> None:
        """Of a number, a view and a synthetic caption."""
        number, view, caption = sample
        start, size = self._places[number]
        images, texts = self._unpack(os.pread(self._file, size, start))
        images[view], texts[[0, 1 + caption]]

    def draw(self, count: int, seed: int) -> list[list[int]]:
        random = np.random.default_rng(seed)
        drawn: list[list[int]] = random.integers(0, (len(self._places), _VIEWS, _SYNTHETIC), (count, 3)).tolist()
        return drawn


def _npz(data: bytes) -> tuple[Any, Any]:
    arrays = np.load(io.BytesIO(data))
    return arrays["image_emb"], arrays["text_emb"]


def _pth_gz(data: bytes) -> tuple[Any, Any]:
    tensors = torch.load(io.BytesIO(gzip.decompress(data)), weights_only=True)
    return tensors["image_emb"], tensors["text_emb"]


def _rate(samples: int, call: Callable[[Any], object], items: Iterable[Any]) -> float:
    """Samples a second of CPU time; the items hold that many."""
    start = time.process_time()
    for item in items:
        call(item)
    return samples / (time.process_time() - start)


def measure(folder: Path, batches: int, samples: int, rounds: int) -> dict[str, Any]:
    """Samples a second of each way, in turns; `first_pass` is that of ours over pages not mapped before.

    `one_array` is what the memory allows: as many rows of the same size out of one array, by numpy.
    """
    ours = _Ours(folder)
    theirs: dict[Rival, _Theirs] = {"npz": _Theirs(folder, "npz"), "pth.gz": _Theirs(folder, "pth.gz")}
    count = batches * _BATCH
    first = _rate(count, ours.stored, ours.batches(batches, 0))
    # Enough to have mapped nearly every page.
    for batch in ours.batches(4 * batches, 1):
        ours.stored(batch)
    for rival in theirs.values():
        _rate(samples, rival.read, rival.draw(samples // 4, 1))
    plain, taken = np.ones((400_000, _WIDTH), np.float16), np.empty((_BATCH, _WIDTH), np.float16)
    runs: dict[str, list[float]] = {name: [] for name in ("stored", "unit", *theirs, "one_array")}
    for turn in range(2, 2 + rounds):
        drawn = ours.batches(batches, turn)
        runs["stored"].append(_rate(count, ours.stored, drawn))
        runs["unit"].append(_rate(count, ours.unit, drawn))
        for kind, rival in theirs.items():
            runs[kind].append(_rate(samples, rival.read, rival.draw(samples, turn)))
        rows = np.random.default_rng(turn).integers(0, len(plain), (batches * _ROWS, _BATCH))
        runs["one_array"].append(_rate(count, lambda row: plain.take(row, 0, taken, "clip"), rows))
    against = [max(pair) for pair in zip(runs["npz"], runs["pth.gz"], strict=True)]
    return {
        "samples_per_second": {name: spread(values) for name, values in runs.items()},
        "first_pass": first,
        "ratio": spread([a / b for a, b in zip(runs["stored"], against, strict=True)]),
        "rows_a_sample": _ROWS,
        "batch": _BATCH,
        "samples": len(ours.caches[0].dataset),
    }


if __name__ == "__main__":
    answer(measure(Path(sys.argv[1]), *map(int, sys.argv[2:])))
