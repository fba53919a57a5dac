"""A teacher cache out as tars in DataCompDR's layout (see `datacompdr.py`), one for each shard, without images.

Members are named by our keys, so they pair with the members of the shards' own tars; augmentations are in pixels of the
images there, whose sizes each sample's JSON repeats.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from shards import Dataset, Folder, Shard, ShardError, ShardRecord, Spec, UserError, fingerprint, published_records
from shards.executor import Executor
from shards.failures import FAILURES
from shards.places import refuse_other_things
from shards.publication import Publication
from shards.record import RECORDS
from shards.runner import run_shards
from teacher_cache.captions import source_of
from teacher_cache.exchange.datacompdr import augmentation_of
from teacher_cache.exchange.layers import size_of
from teacher_cache.layout import read_teacher, teacher_names
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import Join

Format = Literal["npz", "pth.gz"]

_BLOCK = 64
"""Samples whose embeddings are gathered at a time."""


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: `samples` have rows, `missing` of ours had no embeddings; `bytes` over all files."""

    folder: str
    samples: int
    missing: int
    bytes: int


@dataclass(frozen=True)
class _ExportSpec(Spec):
    place: int = field(compare=False)


def export_datacompdr(
    cache: str,
    shards: str,
    out: str,
    executor: Executor,
    *,
    format: Format = "npz",
    teachers: Sequence[str] = (),
    captions: str | None = "syn",
) -> ExportReport:
    """Write the cache's embeddings of the dataset at `shards` to `out`; goes on where it stopped.

    `format`: float32 in `.npz`, or bfloat16 in `.pth.gz`. `teachers`: folders in the cache, side by side in this order
    (default: all of them, imported ones as they came, then by name); they must have the same views. `captions`: the set
    that goes out as synthetic, if the cache has it; the captions of the shards are the real ones.

    Raises:
        UserError: there is nothing to export, or views that DataCompDR has no place for.
        IncompleteError: shards are missing at the end.
    """
    if format not in get_args(Format):
        raise UserError(f"no format {format!r}", do=f"Use {', '.join(get_args(Format))}")
    names = tuple(teachers) or _in_order(Folder(cache)) or ("",)
    dataset = Dataset.open(shards)
    begun = [f"{shard.id:05d}.tar" for shard in dataset.shards]
    refuse_other_things(Folder(out), "an export", {RECORDS, FAILURES, *begun})
    task = _ExportTask(cache, shards, Folder(out), (format, names, captions))
    summary = run_shards(task, executor)
    return ExportReport(out, summary.samples, len(task.dataset) - summary.samples, int(summary.stats["bytes"]))


def _in_order(cache: Folder) -> tuple[str, ...]:
    first = {}
    for name in teacher_names(cache):
        facts = read_teacher(cache.child(name))
        first[name] = facts.identity.get("columns", [0])[0] if facts is not None else 0
    return tuple(sorted(first, key=lambda name: (first[name], name)))


class _ExportTask:
    """Every shard of the dataset. Travels to the workers, which open the caches themselves."""

    name = "cache export"
    overlap = 1

    def __init__(
        self, cache: str, shards: str, out: Folder, wanted: tuple[Format, tuple[str, ...], str | None]
    ) -> None:
        self._cache, self._shards, self._out = cache, shards, out
        self._format, self._teachers, captions = wanted
        self.dataset, caches = self._open()
        # Which of the synthetic captions there are is settled here, for every worker.
        self._captions = captions if captions is not None and captions in caches[0].captions else None
        _check(caches, self._captions)
        self._content = [
            [sorted(map(str, published_records(cache.folder.child(layer.name)).values())) for layer in cache.layers]
            for cache in caches
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "dataset": None, "_content": None}

    def _open(self) -> tuple[Dataset, list[TeacherCache]]:
        dataset = Dataset.open(self._shards)
        join = Join(policy="none")
        return dataset, [TeacherCache.open(self._cache, dataset, name or None, join) for name in self._teachers]

    def specs(self) -> Iterator[_ExportSpec]:
        wanted = fingerprint(["datacompdr", 1, self._format, self._captions, self._content])
        for place, shard in enumerate(self.dataset.shards):
            yield _ExportSpec(shard.id, self._out, fingerprint([wanted, shard.content]), place)

    def open(self) -> _ExportWorker:
        dataset, caches = self._open()
        return _ExportWorker(dataset, caches, self._format, self._captions)


def _check(caches: list[TeacherCache], captions: str | None) -> None:
    first = caches[0]
    where = str(first.folder)
    for cache in caches:
        if cache.missing == len(cache.dataset):
            raise UserError("none of the samples has embeddings", where=str(cache.folder), do="Give the cache's shards")
        if not cache.views or "txt" not in cache.captions:
            raise UserError("DataCompDR has views and captions, one of them is missing", where=str(cache.folder))
        if cache.policy != first.policy or cache.views != first.views:
            raise UserError(f"its views are not those of {cache.folder}", where=where, do="Export them one by one")
        if captions is not None and _source(cache, captions) != _source(first, captions):
            raise UserError(f"its {captions!r} are not those of {cache.folder}", where=where, do="Leave captions out")
    if first.policy.flip or any(first.policy.jitter):
        raise UserError("DataCompDR has no place for mirrored or jittered views", where=where, do="Cache others")


def _source(cache: TeacherCache, captions: str) -> dict[str, Any] | None:
    """The identity of a set of captions."""
    found = (layer.settings["source"] for layer in cache.layers if layer.name == f"captions-{captions}")
    return next(found, None)


class _ExportWorker:
    def __init__(self, dataset: Dataset, caches: list[TeacherCache], format: Format, captions: str | None) -> None:
        self._dataset, self._caches, self._format, self._captions = dataset, caches, format, captions

    def close(self) -> None:
        """Nothing is held."""

    def run(self, spec: _ExportSpec) -> ShardRecord:
        shard, place = self._dataset.shards[spec.place], spec.place
        here = np.stack([np.full(shard.count, place), np.arange(shard.count)], axis=1).astype(np.int64)
        present = np.logical_and.reduce([cache.present(here) for cache in self._caches])
        rows = np.flatnonzero(present)
        publication = Publication(spec, shard.content)
        standing = publication.standing()
        if standing is not None:
            return standing
        with publication.file(".tar") as path:
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for start in range(0, len(rows), _BLOCK):
                    self._write(tar, shard, here[rows[start : start + _BLOCK]])
            size = path.stat().st_size
        shard.release()
        return publication.finish(len(rows), {"bytes": size})

    def _write(self, tar: tarfile.TarFile, shard: Shard, places: npt.NDArray[np.int64]) -> None:
        first = self._caches[0]
        views, count = first.views, first.captions.get(self._captions or "", 0)
        each, numbers = np.repeat(places, views, axis=0), np.tile(np.arange(views), len(places))
        images = self._side_by_side([cache.image(each, numbers) for cache in self._caches], len(places))
        texts = [self._side_by_side([cache.text(places) for cache in self._caches], len(places))]
        if self._captions is not None:
            several = np.repeat(places, count, axis=0)
            numbers = np.tile(np.arange(count), len(places))
            found = [cache.text(several, numbers, self._captions) for cache in self._caches]
            texts.append(self._side_by_side(found, len(places)))
        both = np.concatenate(texts, axis=1)
        for number, (place, row) in enumerate(places.tolist()):
            for name, data in self._members(shard, place, row, images[number], both[number]):
                entry = tarfile.TarInfo(f"{shard.keys[row]}.{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))

    @staticmethod
    def _side_by_side(parts: list[npt.NDArray[np.float32]], samples: int) -> npt.NDArray[np.float32]:
        """(samples, rows of each, D over all teachers)."""
        whole = np.concatenate(parts, axis=1)
        return whole.reshape(samples, -1, whole.shape[1])

    def _members(
        self, shard: Shard, place: int, row: int, images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32]
    ) -> Iterator[tuple[str, bytes]]:
        meta = shard.meta(row)
        width, height = size_of(shard, row)
        stored = [[cache.view(place, row, number) for number in range(cache.views)] for cache in self._caches]
        if any(views != stored[0] for views in stored):
            raise ShardError(f"the teachers saw different views of {shard.keys[row]}")
        if any(view.flip or view.jitter for view in stored[0]):
            raise ShardError(f"a view of {shard.keys[row]} is mirrored or jittered; DataCompDR has no place for it")
        augmentations = [augmentation_of(view, width, height) for view in stored[0]]
        if isinstance(meta.get("url"), str):
            yield "url.txt", meta["url"].encode()
        if self._captions is not None:
            yield "syn.json", _json({"syn_text": self._synthetic(shard, place, row, self._captions)})
        yield "paug.json", _json({"param_aug": augmentations})
        yield self._format, _arrays(self._format, {"image_emb": images, "text_emb": texts})
        facts = {"uid": meta.get("uid", shard.keys[row]), "width": width, "height": height}
        yield "json", _json(facts | ({"sha256": meta["sha256"]} if "sha256" in meta else {}))

    def _synthetic(self, shard: Shard, place: int, row: int, captions: str) -> list[str]:
        first = self._caches[0]
        held = [first.caption(place, row, number, captions) for number in range(first.captions[captions])]
        found = [text for text in held if text is not None]
        if len(found) == len(held):
            return found
        source = _source(first, captions)
        assert source is not None
        return [texts[0] for texts in source_of(source).texts(shard, [row])]


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _arrays(format: Format, arrays: dict[str, npt.NDArray[np.float32]]) -> bytes:
    sink = io.BytesIO()
    if format == "npz":
        np.savez_compressed(sink, **arrays)  # type: ignore[arg-type]
        return sink.getvalue()
    import torch  # noqa: PLC0415 - slow to load, and only this form needs it

    torch.save({name: torch.from_numpy(rows).bfloat16() for name, rows in arrays.items()}, sink)
    return gzip.compress(sink.getvalue(), mtime=0)
