"""The shard task of a build: one shard of one layer at a time.

Other teachers' layers of the same views are filled along with it, so that each image is decoded once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from shards import Dataset, Folder, Shard, ShardError, ShardRecord, Spec, sound_records
from shards.publication import Publication, SupersededError
from shards.record import is_made
from teacher_cache.building.facts import check_same
from teacher_cache.building.forward import BatchedTeacher, UnusableError, embed_texts, embed_views
from teacher_cache.building.settings import BuildSettings
from teacher_cache.dtypes import Stored
from teacher_cache.layout import LayerFacts, layer_table, write_layer_file
from teacher_cache.teachers import load_teacher
from teacher_cache.views import ViewPolicy


@dataclass(frozen=True)
class BuildLayer:
    """A layer to fill: whose (the teacher's number in the settings), where, and what."""

    teacher: int
    folder: Folder
    facts: LayerFacts


@dataclass(frozen=True)
class CacheSpec(Spec):
    """One shard of one layer. `source` is the dataset's shard, `others` the same views by teachers that come later."""

    layer: BuildLayer = field(compare=False)
    source: Shard = field(compare=False)
    others: tuple[CacheSpec, ...] = field(compare=False, default=())


def _spec(layer: BuildLayer, shard: Shard, others: tuple[CacheSpec, ...] = ()) -> CacheSpec:
    return CacheSpec(shard.id, layer.folder, layer.facts.shard_fingerprint(shard.content), layer, shard, others)


def done_specs(layers: list[BuildLayer], dataset: Dataset) -> int:
    """How many shards of these layers are published."""
    done = 0
    for layer in layers:
        names = sound_records(layer.folder)
        done += sum(is_made(names, shard.id, layer.facts.shard_fingerprint(shard.content)) for shard in dataset.shards)
    return done


class CacheTask:
    """Every shard of every layer. Travels to the workers, which load the teachers themselves.

    `together`: those of the first teacher that has a layer of some name, each taking the other teachers' along; what
    they then still lack is left to a task without it.
    """

    name = "cache build"
    overlap = 1

    def __init__(
        self, settings: BuildSettings, layers: list[BuildLayer], dataset: Dataset, *, together: bool = False
    ) -> None:
        self._settings, self._together = settings, together
        self._layers: list[BuildLayer] = layers
        self._shards = dataset.shards

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layers": [], "_shards": ()}

    def specs(self) -> Iterator[CacheSpec]:
        seen: list[BuildLayer] = []
        for place, layer in enumerate(self._layers):
            others = self._layers[place + 1 :] if self._together and layer.facts.kind == "views" else []
            same = [other for other in others if other.facts.name == layer.facts.name]
            led = any(other.facts.name == layer.facts.name for other in seen)
            seen.append(layer)
            # Nobody else must be at a shard that another teacher's worker has taken along.
            if not (self._together and led):
                for shard in self._shards:
                    yield _spec(layer, shard, tuple(_spec(other, shard) for other in same))

    def open(self) -> _CacheWorker:
        return _CacheWorker(self._settings)


class _CacheWorker:
    def __init__(self, settings: BuildSettings) -> None:
        self._settings = settings
        self._sources = {source.name: source for source in settings.captions}
        self._runners: dict[int, BatchedTeacher] = {}
        self._before = 0.0

    @property
    def busy_seconds(self) -> float:
        """For how long teachers' forwards have run here."""
        return sum(runner.busy_seconds for runner in self._runners.values()) + self._before

    def close(self) -> None:
        """Nothing: models go with the worker."""

    def run(self, spec: CacheSpec) -> ShardRecord:
        standing = Publication(spec, spec.source.content).standing()
        if standing is not None:
            return standing
        try:
            return self._captions(spec) if spec.layer.facts.kind == "captions" else self._views(spec)
        except UnusableError as error:
            may_help = "" if self._settings.forward.precision == "fp32" else "; --precision fp32 may help"
            key = spec.source.keys[error.row]
            raise ShardError(
                f"the teacher's embedding of {key} is zero or not finite ({error.spec}){may_help}", key
            ) from None
        finally:
            spec.source.release()

    def _captions(self, spec: CacheSpec) -> ShardRecord:
        shard, layer = spec.source, spec.layer.facts
        source = self._sources[layer.name.removeprefix("captions-")]
        runner, dtype = self._runner(spec.layer), layer.dtype
        texts = source.texts(shard, range(shard.count))
        return _publish(spec, [embed_texts(runner, part, dtype) for part in texts], [], texts if source.stored else [])

    def _views(self, spec: CacheSpec) -> ShardRecord:
        shard = spec.source
        wanted = [spec, *(other for other in spec.others if Publication(other, shard.content).standing() is None)]
        try:
            embeddings, params = self._embed(wanted)
        except UnusableError:
            if len(wanted) == 1:
                raise
            # Another teacher's trouble is reported with its own layer, and holds up no other's.
            wanted = [spec]
            embeddings, params = self._embed(wanted)
        for part, columns in zip(wanted[1:], embeddings[1:], strict=True):
            # Another worker may have been there first, with the same.
            with contextlib.suppress(SupersededError):
                _publish(part, columns, params, [])
        return _publish(spec, embeddings[0], params, [])

    def _embed(self, wanted: list[CacheSpec]) -> tuple[list[list[Stored]], list[npt.NDArray[np.void]]]:
        shard, layer = wanted[0].source, wanted[0].layer.facts
        runners = [(self._runner(part.layer), part.layer.facts.dtype) for part in wanted]
        policy = ViewPolicy.from_identity(layer.settings["policy"])
        return embed_views(runners, shard, policy, layer.columns, range(shard.count))

    def _runner(self, layer: BuildLayer) -> BatchedTeacher:
        settings = self._settings
        size = settings.batch_size or layer.facts.batch_size
        runner = self._runners.get(layer.teacher)
        if runner is None or runner.batch_size != size:
            spec = settings.teachers[layer.teacher].spec
            # What a runner has worked is not forgotten with it.
            self._before += runner.busy_seconds if runner else 0.0
            teacher = runner.teacher if runner else load_teacher(spec, settings.forward, settings.towers)
            check_same(teacher, settings.teachers[layer.teacher].name, layer.facts.teacher)
            runner = self._runners[layer.teacher] = BatchedTeacher(teacher, size, pad=settings.forward.compile)
        return runner


def _publish(
    spec: CacheSpec, columns: list[Stored], params: list[npt.NDArray[np.void]], texts: list[list[str]]
) -> ShardRecord:
    shard = spec.source
    table = layer_table(spec.layer.facts, shard.keys, columns, params=params, texts=texts)
    publication = Publication(spec, shard.content)
    with publication.file(".arrow") as path:
        write_layer_file(str(path), table)
    size = spec.folder.size(f"{shard.id:05d}.arrow") or 0
    return publication.finish(shard.count, {"bytes": size})
