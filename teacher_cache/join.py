"""Which row of a cache belongs to which sample of a dataset.

A cache built from the very shards at hand has its rows in their order. Anything else (shards made again, cut otherwise,
or embeddings that somebody else published for a part of the samples) is joined by key, if the user says so:

    error   every file must have been made from the shard at hand (the default)
    skip    samples without embeddings are left out: counted, and refused above a limit
    none    they take part, without a teacher
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards import Dataset, Folder, Shard, ShardRecord, UserError, published_records, read_records
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

    A selection's samples have the rows of the shards that they were selected from. Raises `UserError` under `error` if
    a file is missing, was made from another shard, or lacks samples; the message names both values.
    """
    names = published_records(folder)
    places = _selected(layer, dataset, names)
    others = [shard for place, shard in enumerate(dataset.shards) if place not in places]
    if join.policy == "error":
        _refuse_other_shards(folder, layer, dataset, others, names)
        wanted = sorted({shard.id for shard in others} | {number for number, _, _ in places.values()})
        names = {number: names[number] for number in wanted}
    records = read_records(folder, names.values())
    if join.policy == "error":
        for shard in others:
            _refuse_short(folder, records[shard.id], shard.count, f"shard {shard.id:05d}")
        for place, (number, count, _) in places.items():
            _refuse_short(
                folder, records[number], count, f"what shard {dataset.shards[place].id:05d} was selected from"
            )
    rows: dict[int, npt.NDArray[np.int32] | None] = {
        place: np.stack([np.full(len(rows), number), rows], axis=1).astype(np.int32)
        for place, (number, count, rows) in places.items()
        if records[number].count == count
    }
    for place, shard in enumerate(dataset.shards):
        own = records.get(shard.id)
        is_own = own is not None and own.fingerprint == layer.shard_fingerprint(shard.content)
        if place not in rows and is_own and own is not None and own.count == shard.count:
            rows[place] = None
    if len(rows) < len(dataset.shards):
        rows |= _by_key(dataset, records, rows, keys)
    return Joined(records, [rows[place] for place in range(len(dataset.shards))])


def _selected(
    layer: LayerFacts, dataset: Dataset, names: Mapping[int, RecordName]
) -> dict[int, tuple[int, int, npt.NDArray[np.int64]]]:
    """For shards of a selection: the file of what they were selected from, that one's samples, and their rows there."""
    found = {}
    numbers = {name.fingerprint: number for number, name in names.items()}
    for place, shard in enumerate(dataset.shards):
        if shard.record.parent and layer.shard_fingerprint(shard.content) not in numbers:
            for content, count, rows in shard.ancestors:
                number = numbers.get(layer.shard_fingerprint(content))
                if number is not None:
                    found[place] = number, count, rows
                    break
            shard.release()
    return found


def _by_key(
    dataset: Dataset,
    records: Mapping[int, ShardRecord],
    known: Mapping[int, npt.NDArray[np.int32] | None],
    keys: Keys,
) -> dict[int, npt.NDArray[np.int32]]:
    """`Joined.places` of the shards that are not known yet.

    Keys are unique in a dataset. So a row that a sample of the file's own shard takes is wanted by no other, and only
    the rows left over are indexed: none where a file merely lacks some of its shard's samples.
    """
    places = {
        place: np.full((shard.count, 2), -1, np.int32)
        for place, shard in enumerate(dataset.shards)
        if place not in known
    }
    place_of = {shard.id: place for place, shard in enumerate(dataset.shards)}
    taken = {place: rows for place, rows in known.items() if rows is not None and len(rows)}
    read = {int(rows[0, 0]) for rows in taken.values()} | {
        dataset.shards[place].id for place, rows in known.items() if rows is None
    }
    with IndexWriter() as writer:
        for number, record in records.items():
            if number in read:
                continue
            place = place_of.get(number)
            held = keys(record)
            left = np.ones(len(held), np.bool_)
            if place in places:
                shard, both = dataset.shards[place], places[place]
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
    for place, both in places.items():
        if (both[:, 0] >= 0).all():
            continue
        shard = dataset.shards[place]
        missing = np.flatnonzero(both[:, 0] < 0)
        numbers, rows = others.first([shard.keys[row] for row in missing.tolist()])
        there = numbers >= 0
        both[missing[there], 0], both[missing[there], 1] = numbers[there], rows[there]
        shard.release()
    return places


def _refuse_short(folder: Folder, record: ShardRecord, count: int, of: str) -> None:
    if record.count != count:
        raise UserError(
            f"{record.shard:05d}.arrow has embeddings of {record.count} samples, {of} holds {count}",
            where=str(folder),
            do="Join with `skip` to leave the others out, with `none` to train them without a teacher",
        )


def _refuse_other_shards(
    folder: Folder, layer: LayerFacts, dataset: Dataset, shards: Sequence[Shard], names: Mapping[int, RecordName]
) -> None:
    for shard in shards:
        if shard.id in names and names[shard.id].fingerprint != layer.shard_fingerprint(shard.content):
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
    missing = [shard.id for shard in shards if shard.id not in names]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(dataset.shards)} shards are not in the cache (first: {missing[0]:05d})",
            where=str(folder),
            do="Run `clipstill cache build` again; it goes on where it stopped",
        )
