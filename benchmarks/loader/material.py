"""What is read: tars of photos like those that ingest leaves, and two teachers' cache of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ImageFilter

from benchmarks.cache.material import CacheShape, SampleBytes, random_rows, settle, write_samples
from benchmarks.ingest.images import jpeg, photo
from shards import Dataset, Spec
from shards.publication import Publication
from teacher_cache.dtypes import store
from teacher_cache.layout import layer_table, write_layer_file
from teacher_cache.views import ViewPolicy

_VIEWS = 4
_BLUR = 0.65
"""Pixels. Real photos resized to this take 0.40 bytes a pixel at this quality, rendered ones that are as sharp 0.49."""
_WORDS = 20_000


class Material(NamedTuple):
    """`kilobytes`: an image's mean size."""

    shards: Path
    tars: list[str]
    cache: Path
    samples: int
    kilobytes: float


def make(folder: Path, *, few: bool = False) -> Material:
    """Make it, from fixed seeds, unless it is there; `few`: what is enough to see that everything runs."""
    photos, count, size = (20, 2, 100) if few else (200, 8, 500)
    shards, cache, ready = folder / "shards", folder / "cache", folder / ".ready"
    images = [_image(folder / "photos", number) for number in range(photos)]
    if not ready.exists():
        shutil.rmtree(shards, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        draw = np.random.default_rng(3)
        words = ["".join(draw.choice(list("etaoinshrdlucmfw"), length)) for length in draw.integers(1, 10, _WORDS)]
        rows = [
            [SampleBytes(images[(shard * size + row) % photos], _caption(draw, words)) for row in range(size)]
            for shard in range(count)
        ]
        dataset = write_samples(shards, rows)
        for name in ("first", "second"):
            _write_cache(cache, dataset, CacheShape(name=name, views=_VIEWS))
        ready.touch()
    tars = sorted(str(path) for path in shards.glob("*.tar"))
    return Material(shards, tars, cache, count * size, sum(map(len, images)) / len(images) / 1e3)


def _image(folder: Path, number: int) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:04d}.jpg"
    if not path.exists():
        image = photo(number, 800, 600).resize((341, 256)).filter(ImageFilter.GaussianBlur(_BLUR))
        partial = path.with_suffix(".part")
        partial.write_bytes(jpeg(image, 95))
        partial.rename(path)
    return path.read_bytes()


def _caption(draw: np.random.Generator, words: list[str]) -> str:
    """Six to fifteen words, of which some are common and most are rare."""
    picked = np.minimum(draw.zipf(1.2, draw.integers(6, 16)), len(words)) - 1
    return " ".join(words[at] for at in picked)


def _write_cache(cache: Path, dataset: Dataset, shape: CacheShape) -> None:
    policy = ViewPolicy()
    for folder, layer in settle(cache, shape):
        for shard in dataset.shards:
            columns = [random_rows(1000 * shard.id + column, shard.count, shape.width) for column in layer.columns]
            params = [policy.pack([policy.draw(key, view, 341, 256) for key in shard.keys]) for view in layer.columns]
            publication = Publication(Spec(shard.id, folder, layer.shard_fingerprint(shard.content)), shard.content)
            embeddings = [store(rows, layer.dtype) for rows in columns]
            table = layer_table(layer, shard.keys, embeddings, params=params if layer.kind == "views" else [])
            with publication.file(".arrow") as path:
                write_layer_file(str(path), table)
            publication.finish(shard.count, {})
