"""Imported rows become layers: what is common to every format. Read `EmbeddingSource` first, then `ImportTask`."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shards import (
    Dataset,
    Folder,
    Shard,
    ShardError,
    ShardRecord,
    Spec,
    UserError,
    published_records,
    read_records,
    run_shards,
)
from shards.choice import Work
from shards.executor import Executor
from shards.publication import Publication, SupersededError
from shards.record import compact, is_made
from shards.sound import withdraw_damaged
from teacher_cache.dtypes import store
from teacher_cache.layout import (
    LAYER,
    TEACHER,
    LayerFacts,
    TeacherFacts,
    layer_table,
    publish_facts,
    read_layer,
    read_teacher,
    refuse_another,
    write_layer_file,
)
from teacher_cache.views import EncodedImage

_SAMPLES_A_SECOND = 500.0
"""Of some kB each that one core unpacks and stores."""


class Rows(NamedTuple):
    """What a source has for the samples `keys` of a shard, its rows `kept`, ascending.

    `embeddings`: (columns, count, D) float32 and `params`: (count, K) packed views, for every row of the shard: those
    kept are not zero, of any norm, D over all teachers. `texts`: for each kept sample the captions that the shards do
    not have. `counts`: why samples were left out, and how often; and, as in `ImportReport`, `absent` and `uneven`, and
    how many of the source's rows were `claimed`.
    """

    keys: list[str]
    embeddings: npt.NDArray[np.float32]
    kept: npt.NDArray[np.int64]
    params: npt.NDArray[np.void]
    texts: list[list[str]]
    counts: Mapping[str, float]


class EmbeddingSource(Protocol):
    """Embeddings in a format of somebody else. Travels to the workers."""

    def gather(self, shard: Shard, scratch: Path) -> Rows:
        """The rows of one shard's samples; large arrays may lie in `scratch`, which outlives them.

        Raises `UserError` naming a file that is damaged.
        """
        ...


@dataclass(frozen=True)
class ImportLayer:
    """A layer and where its content comes from: `first` of the source's columns, and `part` of their D numbers.

    `texts`: which of a sample's texts it keeps.
    """

    folder: Folder
    facts: LayerFacts
    first: int
    part: tuple[int, int]
    texts: range | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import brought.

    `samples` of ours have rows now, of which `uneven` came with more or fewer views or captions than the layers have
    (cut, or repeated in turn); `absent` had none in the source; `left_out` had one that is not theirs, by cause, where
    there are such. `unused` rows of the source belong to no sample of ours. `bytes` over all files.
    """

    folders: tuple[str, ...]
    samples: int
    uneven: int
    absent: int
    left_out: Mapping[str, int]
    unused: int
    bytes: int


@dataclass(frozen=True)
class ImportSpec(Spec):
    """One shard: every layer in `todo` is published, that of `folder` last."""

    source: Shard = field(compare=False)
    todo: tuple[int, ...] = field(compare=False)


class ImportTask:
    """Every shard of the dataset. A spec stands for the first layer that lacks the shard, and its worker publishes all
    that do, so that a shard is read once and a killed import goes on with what is missing.
    """

    name = "cache import"
    overlap = 1

    def __init__(self, source: EmbeddingSource, layers: Sequence[ImportLayer], dataset: Dataset) -> None:
        self._source, self._layers, self._dataset = source, tuple(layers), dataset

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dataset": None}

    def specs(self) -> Iterator[ImportSpec]:
        for layer in self._layers:
            withdraw_damaged(layer.folder)
        done = [published_records(layer.folder) for layer in self._layers]
        for shard in self._dataset.shards:
            wanted = [layer.facts.shard_fingerprint(shard.content) for layer in self._layers]
            made = [is_made(names, shard.id, one) for names, one in zip(done, wanted, strict=True)]
            todo = tuple(number for number, is_there in enumerate(made) if not is_there)
            own = todo[0] if todo else 0
            yield ImportSpec(shard.id, self._layers[own].folder, wanted[own], shard, todo)

    def open(self) -> _ImportWorker:
        return _ImportWorker(self._source, self._layers)


class _ImportWorker:
    def __init__(self, source: EmbeddingSource, layers: tuple[ImportLayer, ...]) -> None:
        self._source, self._layers = source, layers

    def close(self) -> None:
        """Nothing is held."""

    def run(self, spec: ImportSpec) -> ShardRecord:
        shard = spec.source
        with tempfile.TemporaryDirectory(prefix="clipstill-") as scratch:
            rows = self._source.gather(shard, Path(scratch))
            for number in reversed(spec.todo[1:]):
                layer = self._layers[number]
                each = Spec(shard.id, layer.folder, layer.facts.shard_fingerprint(shard.content))
                try:
                    _publish(each, layer, rows, shard)
                except SupersededError:
                    continue
            record = _publish(spec, self._layers[spec.todo[0]], rows, shard)
            del rows
        shard.release()
        return record


def _publish(spec: Spec, layer: ImportLayer, rows: Rows, shard: Shard) -> ShardRecord:
    publication = Publication(spec, shard.content)
    standing = publication.standing()
    if standing is not None:
        return standing
    start, stop = layer.part
    places = range(layer.first, layer.first + len(layer.facts.columns))
    table = layer_table(
        layer.facts,
        rows.keys,
        [store(_unit(rows.embeddings[place, rows.kept, start:stop]), layer.facts.dtype) for place in places],
        params=[rows.params[rows.kept, place] for place in places] if layer.facts.kind == "views" else (),
        texts=[[texts[at] for texts in rows.texts] for at in layer.texts or ()],
    )
    with publication.file(".arrow") as path:
        write_layer_file(str(path), table)
        size = path.stat().st_size
    return publication.finish(len(rows.keys), {"bytes": size, **rows.counts})


def size_of(shard: Shard, row: int) -> tuple[int, int]:
    """Width and height of a sample's upright image, from its header."""
    try:
        image = EncodedImage(shard.image_bytes(row))
    except OSError as error:
        raise ShardError(f"the image of {shard.keys[row]} cannot be read ({error})", shard.keys[row]) from None
    return image.width, image.height


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of unit norm each; a source's checks have refused zeros."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = rows / np.maximum(norms, np.float32(1e-20))
    return unit


def publish_facts_of(teachers: Sequence[tuple[Folder, TeacherFacts]], layers: Sequence[ImportLayer]) -> None:
    """Publish who the teachers are and what each layer is to hold; raises `UserError` where something else stands."""
    do = "Import into a new cache folder"
    for folder, facts in teachers:
        standing = read_teacher(folder)
        if standing is None:
            publish_facts(folder, TEACHER, facts)
            continue
        what = "this folder holds other embeddings"
        # Shards that are done are not looked at again: what later files have for them would be missing, in silence.
        if standing.identity.get("from", facts.identity["from"]) != facts.identity["from"]:
            what, do = "this folder holds the embeddings of other files", f"{do}, from all files at once"
        refuse_another(folder, what, _compared(standing), _compared(facts), do)
    for layer in layers:
        held = read_layer(layer.folder)
        if held is None:
            publish_facts(layer.folder, LAYER, layer.facts)
        else:
            refuse_another(layer.folder, "this layer is another", _json(held), _json(layer.facts), do)


def _compared(facts: TeacherFacts) -> dict[str, Any]:
    return {"identity": facts.identity, "logit_scale": facts.logit_scale, "embed_dim": facts.embed_dim}


def _json(facts: LayerFacts) -> dict[str, Any]:
    return {**asdict(facts), "columns": list(facts.columns)}


def work_of_exchange(shards: str) -> Work:
    """What an import or an export is, by the dataset at `shards`. Raises `UserError` if there is none."""
    samples = len(Dataset.open(shards))
    return Work(f"{samples:,} samples", samples / _SAMPLES_A_SECOND)


def run_import(
    source: EmbeddingSource, layers: Sequence[ImportLayer], dataset: Dataset, executor: Executor, available: int
) -> ImportReport:
    """Bring every layer to every shard, and add up; `available` is how many rows the source has."""
    run_shards(ImportTask(source, layers, dataset), executor)
    size, counts = 0, Counter[str]()
    for layer in layers:
        compact(layer.folder)
        layer.folder.sweep()
        records = read_records(layer.folder)
        found = [records[shard.id] for shard in dataset.shards]
        size += int(sum(record.stats["bytes"] for record in found))
        if layer is layers[0]:
            counts["samples"] = sum(record.count for record in found)
            for record in found:
                counts.update({name: int(value) for name, value in record.stats.items() if name != "bytes"})
    folders = tuple(dict.fromkeys(layer.folder.url.rsplit("/", 1)[0] for layer in layers))
    samples, absent, uneven, claimed = (counts.pop(name, 0) for name in ("samples", "absent", "uneven", "claimed"))
    left_out = {cause: count for cause, count in counts.items() if count}
    if samples == 0:
        raise UserError(
            f"none of {len(dataset)} samples has a row ({absent} are absent, left out are {left_out or 'none'})",
            where=", ".join(folders),
            do="Check by which column they are joined, then import into another cache folder",
        )
    # Two samples of ours may claim the same row.
    return ImportReport(folders, samples, uneven, absent, left_out, max(available - claimed, 0), size)
