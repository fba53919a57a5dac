"""Which row of a cache belongs to which sample of a dataset.

A cache built from the very shards at hand has its rows in their order. Anything else (shards made again, cut otherwise,
or embeddings that somebody else published for a part of the samples) is joined by key, if the user says so:

    error   every file must have been made from the shard at hand (the default)
    skip    samples without embeddings are left out: counted, and refused above a limit
    none    they take part, without a teacher
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards import Dataset, Folder, ShardRecord, UserError, published_records, read_records
from shards.key_index import IndexWriter
from shards.record import RecordName
from teacher_cache.layout import LayerFacts
from teacher_cache.settings import Join

Keys = Callable[[ShardRecord], list[str]]
"""The keys in a file of the layer."""


@dataclass(frozen=True)
class Joined:
    """The files of a layer and where in them each sample is.

    `records`: file number → record. `places`: for each shard of the dataset (count, 2) int32 of file number and row,
    -1 where the sample has none; None for a shard whose file has its very rows.
    """

    records: Mapping[int, ShardRecord]
    places: list[npt.NDArray[np.int32] | None]

    def present(self, place: int, count: int) -> npt.NDArray[np.bool_]:
        """(count,) of the shard's samples that have a row."""
        rows = self.places[place]
        return np.ones(count, np.bool_) if rows is None else rows[:, 0] >= 0


def join_layer(folder: Folder, layer: LayerFacts, dataset: Dataset, join: Join, keys: Keys) -> Joined:
    """Match the files in `folder` with the dataset's samples.

    Raises `UserError` under `error` if a file is missing, was made from another shard, or lacks samples; the message
    names both values.
    """
    names = published_records(folder)
    if join.policy == "error":
        _refuse_missing(folder, layer, dataset, names)
        records = read_records(folder, [names[shard.id] for shard in dataset.shards])
        for shard in dataset.shards:
            if records[shard.id].count != shard.count:
                raise UserError(
                    f"{shard.id:05d}.arrow has embeddings of {records[shard.id].count} samples, the shard holds "
                    f"{shard.count}",
                    where=str(folder),
                    do="Join with `skip` to leave the others out, with `none` to train them without a teacher",
                )
        return Joined(records, [None] * len(dataset.shards))
    records = read_records(folder, names.values())
    same = [
        shard.id in records
        and records[shard.id].fingerprint == layer.shard_fingerprint(shard.content)
        and records[shard.id].count == shard.count
        for shard in dataset.shards
    ]
    if all(same):
        return Joined(records, [None] * len(same))
    return Joined(records, _places(dataset, records, same, keys))


def _places(
    dataset: Dataset, records: Mapping[int, ShardRecord], same: list[bool], keys: Keys
) -> list[npt.NDArray[np.int32] | None]:
    """`Joined.places`.

    Keys are unique in a dataset. So a row that a sample of the file's own shard takes is wanted by no other, and only
    the rows left over are indexed: none where a file merely lacks some of its shard's samples.
    """
    places = [
        None if is_same else np.full((shard.count, 2), -1, np.int32)
        for shard, is_same in zip(dataset.shards, same, strict=True)
    ]
    place_of = {shard.id: place for place, shard in enumerate(dataset.shards)}
    with IndexWriter() as writer:
        for number, record in records.items():
            place = place_of.get(number)
            if place is not None and same[place]:
                continue
            held = keys(record)
            left = np.ones(len(held), np.bool_)
            if place is not None:
                shard, both = dataset.shards[place], places[place]
                assert both is not None
                found = pc.index_in(pa.array(shard.keys, pa.string()), value_set=pa.array(held, pa.string()))
                rows = np.asarray(found.fill_null(-1))
                there = rows >= 0
                both[there, 0], both[there, 1] = number, rows[there]
                left[rows[there]] = False
                shard.release()
            over = np.flatnonzero(left)
            writer.add([held[row] for row in over.tolist()], number, over)
        if not writer.rows:
            return places
        others = writer.index()
    for shard, both in zip(dataset.shards, places, strict=True):
        if both is None or (both[:, 0] >= 0).all():
            continue
        missing = np.flatnonzero(both[:, 0] < 0)
        numbers, rows = others.first([shard.keys[row] for row in missing.tolist()])
        there = numbers >= 0
        both[missing[there], 0], both[missing[there], 1] = numbers[there], rows[there]
        shard.release()
    return places


def _refuse_missing(folder: Folder, layer: LayerFacts, dataset: Dataset, names: Mapping[int, RecordName]) -> None:
    missing = [shard.id for shard in dataset.shards if shard.id not in names]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(dataset.shards)} shards are not in the cache (first: {missing[0]:05d})",
            where=str(folder),
            do="Run `clipstill cache build` again; it goes on where it stopped",
        )
    for shard in dataset.shards:
        if names[shard.id].fingerprint != layer.shard_fingerprint(shard.content):
            (record,) = read_records(folder, [names[shard.id]]).values()
            if record.parent != shard.content:
                what = (
                    f"shard {shard.id:05d} was cached from content {record.parent} (dataset {layer.dataset!r}), "
                    f"{dataset.folder} holds {shard.content} (dataset {dataset.name!r})"
                )
            else:
                what = (
                    f"{shard.id:05d}.arrow was made as {record.fingerprint}, {layer.name} is to hold "
                    f"{layer.shard_fingerprint(shard.content)}"
                )
            raise UserError(
                what,
                where=str(folder),
                do="Use the cache of these shards, build one for them, or join by key with `skip` or `none`",
            )
