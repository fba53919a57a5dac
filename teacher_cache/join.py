"""Which row of a cache belongs to which sample of a dataset.

A cache built from the very shards at hand has its rows in their order. Anything else (shards made again, cut otherwise,
or embeddings that somebody else published for a part of the samples) is joined by key, if the user says so:

    error   every file must have been made from the shard at hand (the default)
    skip    samples without embeddings are left out: counted, and refused above a limit
    none    they take part, without a teacher
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shards import Dataset, Folder, Shard, ShardRecord, UserError, published_records, read_records
from shards.derived import derived
from shards.key_index import IndexWriter
from shards.record import RecordName
from teacher_cache.layout import LayerFacts
from teacher_cache.settings import Join

Keys = Callable[[ShardRecord], pa.StringArray]
"""The keys in a file of the layer."""

Rows = npt.NDArray[np.int32]
"""(n, 2): file number and row of each sample of a shard, -1 where it has none."""

_FEW = 8
"""Files that a shard is compared with one by one; where its keys lie among those of more they are looked up by hash."""
_SELECTIONS = 64
"""Shards of a selection whose rows are held."""


@dataclass(frozen=True)
class _Selected:
    """The file of what a shard was selected from, and how many selections lie between, 0 of its very parent."""

    file: int
    generation: int


class Joined:
    """The files of a layer and where in them each sample is.

    `records`: file number → record. `in_order`: (shards,) whether a shard's file has its very rows. Nothing is held for
    each sample: rows of a selection are in its indexes, those that were matched by key in a file that is mapped.
    """

    def __init__(
        self,
        records: Mapping[int, ShardRecord],
        dataset: Dataset,
        selected: Mapping[int, _Selected],
        matched: Mapping[int, Rows],
    ) -> None:
        self.records, self._dataset = records, dataset
        self._selected, self._matched = selected, matched
        self.in_order = np.ones(len(dataset.shards), np.bool_)
        self.in_order[[*selected, *matched]] = False
        self._rows_selected = lru_cache(maxsize=_SELECTIONS)(self._read_selected)

    def rows(self, place: int) -> Rows | None:
        """Where the samples of a shard are; None for one whose file has its very rows.

        Raises `UserError` for a selection's shard that does not fit what it was selected from.
        """
        if place in self._matched:
            return self._matched[place]
        return self._rows_selected(place) if place in self._selected else None

    def present(self, place: int) -> npt.NDArray[np.bool_] | None:
        """(count,) which samples of a shard have a row; None where all have."""
        rows = self._matched.get(place)
        return None if rows is None else rows[:, 0] >= 0

    def files(self, place: int) -> list[int]:
        """The numbers of the files that a shard's samples are in."""
        if place in self._matched:
            return [number for number in np.unique(self._matched[place][:, 0]).tolist() if number >= 0]
        found = self._selected.get(place)
        return [self._dataset.shards[place].id if found is None else found.file]

    def _read_selected(self, place: int) -> Rows:
        shard, found = self._dataset.shards[place], self._selected[place]
        ancestors = shard.ancestors
        if len(ancestors) <= found.generation:
            raise UserError(
                f"the index of shard {shard.id:05d} does not say which samples were selected",
                where=str(shard.folder),
                do="Run the command that made it again",
            )
        ancestor = ancestors[found.generation]
        record = self.records[found.file]
        _refuse_short(shard.folder, record, ancestor.samples, f"what shard {shard.id:05d} was selected from")
        return np.stack([np.full(len(ancestor.rows), found.file), ancestor.rows], axis=1).astype(np.int32)


def join_layer(folder: Folder, layer: LayerFacts, dataset: Dataset, join: Join, keys: Keys) -> Joined:
    """Match the files in `folder` with the dataset's samples.

    A selection's samples have the rows of the shards that they were selected from. Raises `UserError` under `error` if
    a file is missing, was made from another shard, or lacks samples; the message names both values.
    """
    names = published_records(folder)
    selected = _selected(layer, dataset, names)
    others = [shard for place, shard in enumerate(dataset.shards) if place not in selected]
    if join.policy == "error":
        _refuse_other_shards(folder, layer, dataset, others, names)
        wanted = sorted({shard.id for shard in others} | {found.file for found in selected.values()})
        names = {number: names[number] for number in wanted}
    records = read_records(folder, names.values())
    if not layer.settings["precision"]:
        # What others published may be of a part of a shard, and then has other rows than it.
        for place, found in list(selected.items()):
            shard = dataset.shards[place]
            _, count = shard.ancestry[found.generation]
            if join.policy == "error":
                of = f"what shard {shard.id:05d} was selected from"
                _refuse_short(folder, records[found.file], count, of)
            elif records[found.file].count != count:
                del selected[place]
    if join.policy == "error":
        for shard in others:
            _refuse_short(folder, records[shard.id], shard.count, f"shard {shard.id:05d}")
        return Joined(records, dataset, selected, {})
    return Joined(records, dataset, selected, _by_key(layer, dataset, records, selected, keys))


def _is_of(record: ShardRecord | None, layer: LayerFacts, shard: Shard) -> bool:
    """Whether a file has the very rows of a shard."""
    if record is None or record.count != shard.count:
        return False
    return record.fingerprint == layer.shard_fingerprint(shard.content)


def _selected(layer: LayerFacts, dataset: Dataset, names: Mapping[int, RecordName]) -> dict[int, _Selected]:
    """For shards of a selection, by place, the nearest of what they were selected from that has a file."""
    numbers = {name.fingerprint: number for number, name in names.items()}
    found = {}
    for place, shard in enumerate(dataset.shards):
        if not shard.record.parent or layer.shard_fingerprint(shard.content) in numbers:
            continue
        for generation, content in enumerate(_contents(shard)):
            number = numbers.get(layer.shard_fingerprint(content))
            if number is not None:
                found[place] = _Selected(number, generation)
                break
    return found


def _contents(shard: Shard) -> Iterator[str]:
    """What a shard was selected from, nearest first; no file is opened for the first."""
    yield shard.record.parent
    yield from (content for content, _ in shard.ancestry[1:])


def _by_key(
    layer: LayerFacts,
    dataset: Dataset,
    records: Mapping[int, ShardRecord],
    selected: Mapping[int, _Selected],
    keys: Keys,
) -> dict[int, Rows]:
    """`Joined.rows` of the shards that are not `selected` and of which no file has the very rows, mapped from a file.

    It is made once for equal shards and files, by the first of all processes that want it: 8 bytes a sample.
    """
    left = [
        place
        for place, shard in enumerate(dataset.shards)
        if place not in selected and not _is_of(records.get(shard.id), layer, shard)
    ]
    # Files that were built have the rows of their shards, in order: all layers of a cache then share the file.
    built = bool(layer.settings["precision"])
    files = [(number, record.parent if built else record.content, record.count) for number, record in records.items()]
    known = [(place, found.file, found.generation) for place, found in selected.items()]
    name = sha256(json.dumps([dataset.content, files, known, left]).encode()).hexdigest()
    counts = [dataset.shards[place].count for place in left]
    if not sum(counts):
        return {place: np.empty((0, 2), np.int32) for place in left}

    def make(path: Path) -> None:
        rows = np.memmap(path, np.int32, "w+", shape=(sum(counts), 2))
        _match(dataset, records, selected, dict(zip(left, _cut(rows, counts), strict=True)), keys)
        rows.flush()

    with derived(name, make) as held:
        mapped = mmap.mmap(held, 0, access=mmap.ACCESS_READ)
    return dict(zip(left, _cut(np.frombuffer(mapped, np.int32).reshape(-1, 2), counts), strict=True))


def _cut(rows: Rows, counts: Sequence[int]) -> list[Rows]:
    ends = np.cumsum(counts).tolist()
    return [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _match(
    dataset: Dataset,
    records: Mapping[int, ShardRecord],
    selected: Mapping[int, _Selected],
    places: Mapping[int, Rows],
    keys: Keys,
) -> None:
    """Fill the rows of these shards.

    Keys are unique in a dataset. So a row that a sample of the file's own shard takes is wanted by no other, and files
    that have the very rows of a shard are not read. First each shard is compared with the files whose keys it lies
    among, which are a few if keys count up; what is left on both sides is indexed.
    """
    held = lru_cache(maxsize=2 * _FEW)(lambda number: keys(records[number]))
    taken = {shard.id for place, shard in enumerate(dataset.shards) if place not in places and place not in selected}
    taken |= {found.file for found in selected.values()}
    files = [number for number, record in records.items() if number not in taken and record.count]
    ranges = _Ranges([(number, *_first_and_last(held(number))) for number in files])
    free = {number: np.packbits(np.ones(records[number].count, np.bool_)) for number in files}
    missing = 0
    for place, both in places.items():
        both[:] = -1
        if not len(both):
            continue
        wanted = dataset.shards[place].key_array()
        for number in ranges.around(dataset.shards[place].id, *_first_and_last(wanted)):
            lacking = np.flatnonzero(both[:, 0] < 0)
            found = pc.index_in(wanted.take(pa.array(lacking)), value_set=held(number))
            rows = np.asarray(found.fill_null(-1))
            there = rows >= 0
            both[lacking[there], 0], both[lacking[there], 1] = number, rows[there]
            bits = np.unpackbits(free[number])
            bits[rows[there]] = 0
            free[number] = np.packbits(bits)
        missing += int((both[:, 0] < 0).sum())
    if missing:
        _match_others(dataset, {number: (records[number], free[number]) for number in files}, places, keys)


def _match_others(
    dataset: Dataset,
    files: Mapping[int, tuple[ShardRecord, npt.NDArray[np.uint8]]],
    places: Mapping[int, Rows],
    keys: Keys,
) -> None:
    """Fill what is missing yet from the rows that are free; of each file these are bits."""
    with IndexWriter() as writer:
        for number, (record, free) in files.items():
            over = np.flatnonzero(np.unpackbits(free, count=record.count))
            if over.size:
                writer.add(keys(record).take(pa.array(over)).to_pylist(), number, over)
        if not writer.rows:
            return
        others = writer.index()
    for place, both in places.items():
        missing = np.flatnonzero(both[:, 0] < 0)
        if not missing.size:
            continue
        wanted = dataset.shards[place].key_array().take(pa.array(missing))
        numbers, rows = others.first(wanted.to_pylist())
        there = numbers >= 0
        both[missing[there], 0], both[missing[there], 1] = numbers[there], rows[there]


class _Ranges:
    """The least and the greatest key of each file, by which those are found that a shard may have its rows in."""

    def __init__(self, files: Sequence[tuple[int, str, str]]) -> None:
        self._files = sorted(files, key=lambda file: file[1])
        self._firsts = [first for _, first, _ in self._files]
        self._known = {number for number, _, _ in files}

    def around(self, own: int, first: str, last: str) -> list[int]:
        """The file of the shard's own number, and the others with keys from `first` to `last`; none if many have."""
        # Those that begin within, and the one that begins before.
        start, stop = max(0, bisect_left(self._firsts, first) - 1), bisect_right(self._firsts, last)
        near = [] if stop - start > _FEW else [number for number, _, end in self._files[start:stop] if end >= first]
        mine = [own] if own in self._known else []
        return [*mine, *(number for number in near if number != own)]


def _first_and_last(keys: pa.StringArray) -> tuple[str, str]:
    found = pc.min_max(keys).as_py()
    return found["min"], found["max"]


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
