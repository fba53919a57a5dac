"""What is measured on: datasets of photos or of nothing but keys, and caches that no teacher had to be run for."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.ingest.images import jpeg, photo
from shards import Dataset, Folder, Spec
from shards.publication import Publication
from shards.samples import write_shards
from teacher_cache.captions import CaptionSource
from teacher_cache.dtypes import Dtype, row_bytes, store
from teacher_cache.layout import (
    LAYER,
    TEACHER,
    LayerFacts,
    TeacherFacts,
    layer_table,
    publish_facts,
    views_layer_name,
    write_layer_file,
)
from teacher_cache.views import ViewPolicy

Rows = npt.NDArray[np.float32]
"""(n, D) of unit norm."""

SYNTHETIC = CaptionSource.parse("json:syn*5")
"""DataCompDR's five captions by a model, beside the real one."""


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """One teacher's layers as DataCompDR has them: `views` of the image, the caption, and five synthetic ones."""

    name: str
    width: int = 768
    views: int = 10
    dtype: Dtype = "float16"

    def payload(self, samples: int) -> int:
        """Bytes of the embeddings alone, an int8's factor counted as part of it."""
        return samples * (self.views + 1 + SYNTHETIC.count) * row_bytes(self.dtype, self.width)


class SampleBytes(NamedTuple):
    image: bytes
    caption: str


def photos(folder: Path, count: int) -> list[bytes]:
    """`count` JPEGs of 341x256 and quality 95 like those that ingest leaves, from fixed seeds; made once."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if not path.exists():
            partial = path.with_suffix(".part")
            partial.write_bytes(jpeg(photo(number, 800, 600).resize((341, 256)), 95))
            partial.rename(path)
        found.append(path.read_bytes())
    return found


def write_samples(folder: Path, shards: Iterable[Iterable[SampleBytes]]) -> Dataset:
    """A dataset of these samples in these shards."""
    numbers = itertools.count()

    def keyed(samples: Iterable[SampleBytes]) -> Iterator[tuple[str, bytes, str, dict[str, Any]]]:
        for sample in samples:
            yield f"bench-{next(numbers):09d}", sample.image, sample.caption, {}

    return write_shards(folder, map(keyed, shards), name="bench")


def keys_only(folder: Path, shards: int, rows: int) -> Dataset:
    """A dataset whose images nobody will look at."""
    dot = io.BytesIO()
    Image.new("L", (1, 1)).save(dot, "PNG")
    return write_samples(folder, [[SampleBytes(dot.getvalue(), "a dot")] * rows] * shards)


def random_rows(seed: int, count: int, width: int) -> Rows:
    """Unit vectors in directions drawn at random."""
    rows = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def settle(cache: Path, shape: CacheShape) -> list[tuple[Folder, LayerFacts]]:
    """Publish who the teacher is and which layers it has; returns the layers."""
    folder = Folder(cache).child(shape.name)
    teacher = TeacherFacts(
        name=shape.name,
        spec="benchmark",
        identity={"kind": "benchmark", "name": shape.name},
        embed_dim=shape.width,
        logit_scale=100.0,
        logit_bias=None,
        image_size=224,
        has_text=True,
        versions={},
    )
    publish_facts(folder, TEACHER, teacher)
    views = tuple(range(shape.views))
    wanted: list[tuple[str, str, tuple[int, ...], dict[str, object]]] = [
        ("views", views_layer_name(views), views, {"policy": ViewPolicy().identity()})
    ]
    for source in (CaptionSource("txt"), SYNTHETIC):
        columns = tuple(range(source.count))
        wanted.append(("captions", f"captions-{source.name}", columns, {"source": source.identity()}))
    layers = []
    for kind, name, columns, more in wanted:
        facts = LayerFacts(
            kind="views" if kind == "views" else "captions",
            name=name,
            columns=columns,
            teacher=teacher.fingerprint,
            settings={"dtype": shape.dtype, "precision": "", **more},
            dataset="bench",
            batch_size=0,
        )
        publish_facts(folder.child(name), LAYER, facts)
        layers.append((folder.child(name), facts))
    return layers


def blank_params(layer: LayerFacts, count: int) -> list[npt.NDArray[np.void]]:
    """What a file keeps of how each view was made, here nothing; as many bytes as real ones."""
    return [np.zeros(count, ViewPolicy().dtype) for _ in layer.columns] if layer.kind == "views" else []


def write_cache(
    cache: Path, dataset: Dataset, shape: CacheShape, rows_of: Callable[[LayerFacts, int, int], Rows]
) -> None:
    """Fill a teacher's layers, file by file as a build does; `rows_of(layer, shard, column)` says with what."""
    for folder, layer in settle(cache, shape):
        for shard in dataset.shards:
            publication = Publication(Spec(shard.id, folder, layer.shard_fingerprint(shard.content)), shard.content)
            embeddings = [store(rows_of(layer, shard.id, column), layer.dtype) for column in layer.columns]
            table = layer_table(layer, shard.keys, embeddings, params=blank_params(layer, shard.count))
            with publication.file(".arrow") as path:
                write_layer_file(str(path), table)
            publication.finish(shard.count, {})
