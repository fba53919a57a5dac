"""Build a cache: plan its layers, then embed shard by shard on as many devices as there are."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clip_models import Precision
from shards import Dataset, Folder, Shard, ShardError, ShardRecord, Spec, Summary, UserError, run_shards
from shards.publication import Publication
from shards.runner import Executor
from teacher_cache.layout import (
    LAYER,
    TEACHER,
    LayerFacts,
    TeacherFacts,
    layer_table,
    publish_facts,
    read_layers,
    read_teacher,
    refuse_another,
)
from teacher_cache.teacher import Teacher
from teacher_cache.views import View, ViewPolicy, decode, draw_view, render


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What to cache. `views` is K; `name` the teacher's folder (default: from its spec).

    `precision` is the forward's: float32, or autocast to bfloat16 or float16. `batch_size` changes speed and the last
    bits of a float32 sum, nothing else, so a cache may be finished with another one.
    """

    shards: str
    cache: str
    teacher: str
    name: str | None = None
    views: int = 4
    policy: ViewPolicy = field(default_factory=ViewPolicy)
    precision: Precision = "fp32"
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.views < 1 or self.batch_size < 1:
            raise UserError(f"{self.views} views in batches of {self.batch_size} cannot be built")
        if self.policy.kind == "centre" and self.views != 1:
            raise UserError(f"central views are all the same; {self.views} were asked for", do="Use --views 1")


@dataclass(frozen=True)
class BuildReport:
    """What the cache holds now: `bytes` over all its files, for `samples` samples with `views` views and a caption.

    `views` may be more than were asked for: views once made stay.
    """

    folder: str
    samples: int
    views: int
    bytes: int
    summary: Summary


@dataclass(frozen=True)
class CacheSpec(Spec):
    """One shard of one layer; `source` is the dataset's shard."""

    layer: LayerFacts = field(compare=False)
    source: Shard = field(compare=False)


def build_cache(settings: BuildSettings, executor: Executor) -> BuildReport:
    """Bring the cache at `settings.cache` to K views and the captions of every sample; goes on where it stopped.

    Raises:
        UserError: no such dataset or teacher, or the folder holds embeddings of another dataset, teacher or policy.
        IncompleteError: shards are missing at the end.
    """
    dataset = Dataset.open(settings.shards)
    facts = Teacher.load(settings.teacher, precision=settings.precision).facts(settings.teacher, settings.name)
    folder = Folder(settings.cache).child(facts.name)
    _settle_teacher(folder, facts)
    layers = _settle_layers(folder, facts, dataset, settings)
    task = CacheTask(settings, folder, layers, dataset)
    summary = run_shards(task, executor)
    folder.sweep()
    views = sum(len(layer.columns) for layer in layers if layer.kind == "views")
    return BuildReport(str(folder), len(dataset), views, int(summary.stats["bytes"]), summary)


def _settle_teacher(folder: Folder, facts: TeacherFacts) -> None:
    standing = read_teacher(folder)
    if standing is None:
        publish_facts(folder, TEACHER, facts)
        return
    refuse_another(
        folder,
        "this folder holds the embeddings of another teacher",
        standing.identity,
        json.loads(json.dumps(facts.identity)),
        "Give the new teacher another --teacher-name",
    )


def _settle_layers(
    folder: Folder, teacher: TeacherFacts, dataset: Dataset, settings: BuildSettings
) -> list[LayerFacts]:
    """The layers there are, and a new one for the views they lack."""
    common = {"dtype": "float16", "precision": settings.precision}
    wanted: dict[str, dict[str, Any]] = {
        "views": {**common, "policy": settings.policy.identity()},
        "captions": {**common, "source": "txt"},
    }
    views, captions = read_layers(folder, "views"), read_layers(folder, "captions")
    for layer in (*views, *captions):
        if layer.dataset != dataset.name:
            raise UserError(
                f"this layer was built from dataset {layer.dataset!r}, {settings.shards} is {dataset.name!r}",
                where=str(folder.child(layer.name)),
                do="Use one cache folder a dataset",
            )
        refuse_another(
            folder.child(layer.name),
            "this layer was built otherwise",
            layer.settings,
            wanted[layer.kind],
            "Use the same settings, or another --teacher-name",
        )
    have = sum(len(layer.columns) for layer in views)
    columns = tuple(range(have, settings.views))
    if columns:
        name = f"views-{columns[0]:03d}-{columns[-1]:03d}"
        views.append(
            LayerFacts(
                kind="views",
                name=name,
                columns=columns,
                teacher=teacher.fingerprint,
                settings=wanted["views"],
                dataset=dataset.name,
            )
        )
        publish_facts(folder.child(name), LAYER, views[-1])
    if not captions:
        captions.append(
            LayerFacts(
                kind="captions",
                name="captions-txt",
                columns=(0,),
                teacher=teacher.fingerprint,
                settings=wanted["captions"],
                dataset=dataset.name,
            )
        )
        publish_facts(folder.child("captions-txt"), LAYER, captions[-1])
    return [*views, *captions]


class CacheTask:
    """Every shard of every layer. Travels to the workers, which load the teacher themselves."""

    name = "cache build"

    def __init__(self, settings: BuildSettings, folder: Folder, layers: list[LayerFacts], dataset: Dataset) -> None:
        self._settings, self._folder, self._layers = settings, folder, layers
        self._dataset = dataset

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layers": None, "_dataset": None}

    def specs(self) -> Iterator[CacheSpec]:
        for layer in self._layers:
            for shard in self._dataset.shards:
                fingerprint = layer.shard_fingerprint(shard.content)
                yield CacheSpec(shard.id, self._folder.child(layer.name), fingerprint, layer, shard)

    def open(self) -> _CacheWorker:
        settings = self._settings
        return _CacheWorker(Teacher.load(settings.teacher, precision=settings.precision), settings.batch_size)


class _CacheWorker:
    def __init__(self, teacher: Teacher, batch_size: int) -> None:
        self._teacher, self._batch_size = teacher, batch_size

    def close(self) -> None:
        """Nothing: models go with the worker."""

    def run(self, spec: CacheSpec) -> ShardRecord:
        shard = spec.source
        views: list[list[View]] = []
        if spec.layer.kind == "captions":
            embeddings = [embed_captions(self._teacher, shard, range(shard.count), self._batch_size)]
        else:
            policy = ViewPolicy.from_identity(spec.layer.settings["policy"])
            embeddings, views = embed_views(self._teacher, shard, policy, spec.layer.columns, self._batch_size)
        for rows in embeddings:
            _refuse_not_finite(shard, rows)
        table = layer_table(spec.layer, shard, [rows.astype(np.float16) for rows in embeddings], views)
        shard.release()
        publication = Publication(spec, shard.content)
        standing = publication.standing()
        if standing is not None:
            return standing
        with publication.file(".arrow") as path, pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table.combine_chunks())
        size = (spec.folder.size(f"{shard.id:05d}.arrow")) or 0
        return publication.finish(shard.count, {"bytes": size})


def _refuse_not_finite(shard: Shard, rows: npt.NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ShardError(
            f"the teacher's embedding of {shard.keys[bad[0]]} is not finite ({bad.size} such rows); "
            "--precision fp32 may help"
        )


def embed_captions(teacher: Teacher, shard: Shard, rows: Sequence[int], batch_size: int) -> npt.NDArray[np.float32]:
    """(len(rows), D) float32 of unit norm, for the captions of these rows."""
    batches = [
        teacher.embed_texts([shard.caption(row) for row in rows[at : at + batch_size]])
        for at in range(0, len(rows), batch_size)
    ]
    return np.concatenate(batches) if batches else np.empty((0, _width(teacher)), np.float32)


def embed_views(
    teacher: Teacher, shard: Shard, policy: ViewPolicy, indices: Sequence[int], batch_size: int
) -> tuple[list[npt.NDArray[np.float32]], list[list[View]]]:
    """For each view index a (count, D) float32 array of unit norm, and the views' parameters.

    Each image is decoded once for all its views, on threads, while the teacher works on the batch before.
    Raises `ShardError` naming the sample whose image does not decode.
    """

    def sample(row: int) -> list[tuple[View, npt.NDArray[np.uint8]]]:
        try:
            image = decode(shard.image_bytes(row))
        except OSError as error:
            raise ShardError(f"the image of {shard.keys[row]} does not decode ({error})") from None
        views = [draw_view(policy, shard.keys[row], index, *image.size) for index in indices]
        return [(view, render(image, view, teacher.image_size)) for view in views]

    embeddings: list[list[npt.NDArray[np.float32]]] = [[] for _ in indices]
    drawn: list[list[View]] = [[] for _ in indices]
    for batch in _ahead(sample, range(shard.count), batch_size):
        for place in range(len(indices)):
            drawn[place] += [views[place][0] for views in batch]
            embeddings[place].append(teacher.embed_images(np.stack([views[place][1] for views in batch])))
    if not shard.count:
        return [np.empty((0, _width(teacher)), np.float32) for _ in indices], drawn
    return [np.concatenate(parts) for parts in embeddings], drawn


def _width(teacher: Teacher) -> int:
    return int(teacher.embed_texts([""]).shape[1])


T = TypeVar("T")


def _ahead(make: Callable[[int], T], rows: Sequence[int], batch_size: int) -> Iterator[list[T]]:
    """Batches of `make(row)` in order, the next one being made while the caller uses this one."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        flying: deque[list[Future[T]]] = deque()
        for at in range(0, len(rows), batch_size):
            flying.append([pool.submit(make, row) for row in rows[at : at + batch_size]])
            if len(flying) == 2:
                yield [future.result() for future in flying.popleft()]
        for futures in flying:
            yield [future.result() for future in futures]
