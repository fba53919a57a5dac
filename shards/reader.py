"""Read a published dataset: strict about what is there.

A dataset is readable when every shard its plan names has a published record; nothing is scanned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.dataset import DatasetPlan
from shards.errors import UserError
from shards.fingerprint import fingerprint
from shards.record import published_records, read_records, uncollected
from shards.sample import OpenShards, Sample
from shards.shard import Shard
from shards.storage import Folder

if TYPE_CHECKING:
    from shards.key_index import KeyIndex
    from shards.side_table import ArrowTable, SideTable


class Dataset:
    """A complete dataset: `name`, and its `shards` in order. Without `captioned`, every sample's caption is empty.

    `for sample in dataset` goes through all of it in order; `dataset[key]` is a sample by its key, `dataset.at(place)`
    by its place in that order.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        shards: tuple[Shard, ...],
        *,
        captioned: bool = True,
        tables: Sequence[tuple[SideTable, ...]] = (),
    ) -> None:
        self.folder, self.name, self.shards, self.captioned = folder, name, shards, captioned
        # Of each shard those that stand beside it: of datasets put together each has its own.
        self._tables = tuple(tables) or ((),) * len(shards)
        self._opened = OpenShards()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_keys"}

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([shard.count for shard in self.shards])

    def __iter__(self) -> Iterator[Sample]:
        for place, shard in enumerate(self.shards):
            yield from self._samples(place, range(shard.count))

    def at(self, place: int) -> Sample:
        """The sample at a place in the dataset's order, from 0; -1 is the last. Raises `UserError` past its ends."""
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise UserError(f"no sample at {place}: there are {len(self):,}", where=str(self.folder))
        at = int(np.searchsorted(self._ends, number, side="right"))
        (sample,) = self._samples(at, [number - int(self._ends[at]) + self.shards[at].count])
        return sample

    def __getitem__(self, key: str) -> Sample:
        """The sample of a key. The first look-up reads every index once, and leaves 36 bytes a sample in a file in
        `$TMPDIR` that vanishes with the process, and next to nothing in memory.

        Raises `UserError` if there is none, or if several datasets were put together and two have it.
        """
        found = self._keys.find(key)
        if not found:
            raise self.unknown(key)
        if len(found) > 1:
            raise UserError(f"{len(found)} samples have the key {key!r}", where=self.name, do="Look in one dataset")
        (sample,) = self._samples(found[0].file, [found[0].start])
        return sample

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(self._keys.find(key))

    @cached_property
    def _keys(self) -> KeyIndex:
        """Where every key is: which of the shards, and which row."""
        from shards.key_index import IndexWriter  # noqa: PLC0415 - few need it

        with IndexWriter() as writer:
            for place, shard in enumerate(self.shards):
                writer.add(shard.keys, place, np.arange(shard.count))
                shard.release()
            return writer.index()

    def _samples(self, place: int, rows: Sequence[int]) -> Iterator[Sample]:
        """Of the shard at `place`."""
        shard, tables = self.shards[place], self._tables[place]
        keys = self._opened.use(shard).keys if tables else []
        found = [table.rows([keys[row] for row in rows]) for table in tables]
        for number, row in enumerate(rows):
            told: dict[str, Any] = {}
            absent: list[str] = []
            for table, values in zip(tables, found, strict=True):
                told |= values[number] or {}
                absent += table.columns if values[number] is None else ()
            yield Sample(shard, row, self._opened, told, absent)

    def unknown(self, key: str) -> UserError:
        """What to say where no sample has a key."""
        first = next(shard.keys[0] for shard in self.shards if shard.count)
        return UserError(
            f"no sample {key!r}; the first of {len(self):,} is {first!r}",
            where=str(self.folder),
            do="The NNNNN.parquet files name every row, and why it is no sample if it is none",
        )

    def with_columns(self, table: str | os.PathLike[str] | ArrowTable) -> Dataset:
        """The same samples with columns of a table beside them, by its column `key`: a Parquet file's path, or a table
        of Arrow or pandas.

        They are fields of `meta`, in place of the sample's own; `caption` (a text) and `captions` (a list) are its
        captions too. Nothing is written, and the files of the dataset stay as they are.
        Raises `UserError` for a table without keys, with a key twice, or with no key of this dataset at all.
        """
        from shards.side_table import SideTable  # noqa: PLC0415 - few need it

        beside = SideTable.of(table)
        if not any(beside.has_any(self._opened.use(shard).keys) for shard in self.shards):
            raise UserError(
                "no key of the table is one of the dataset's", where=str(self.folder), do="Compare the keys"
            )
        tables = [(*before, beside) for before in self._tables]
        return Dataset(self.folder, self.name, self.shards, captioned=self.captioned, tables=tables)

    @property
    def content(self) -> str:
        """16 hex digits over every shard's content: equal datasets, byte for byte."""
        return fingerprint([shard.content for shard in self.shards])

    @staticmethod
    def together(datasets: Sequence[Dataset]) -> Dataset:
        """All their shards in a row, each with the columns beside its own dataset; its folder is the first one's.

        Keys are unique within each dataset only.
        """
        first, *others = datasets
        if not others:
            return first
        return Dataset(
            first.folder,
            " + ".join(dataset.name for dataset in datasets),
            tuple(shard for dataset in datasets for shard in dataset.shards),
            captioned=all(dataset.captioned for dataset in datasets),
            tables=[tables for dataset in datasets for tables in dataset._tables],
        )

    @staticmethod
    @uncollected()
    def open(url: str | os.PathLike[str]) -> Dataset:
        """Open the dataset at `url`.

        Raises `UserError` if there is none, if shards are missing, or if it holds no sample at all.
        """
        folder = Folder(url)
        plan = DatasetPlan.read(folder)
        plan.refuse_unfinished()
        names = published_records(folder)
        missing = plan.missing(names)
        if missing:
            shown = ", ".join(f"{shard:05d}" for shard in missing[:5]) + (", ..." if len(missing) > 5 else "")
            first = plan.stages[0]
            made = "adopt" if first.adopted else first.made_of[0] if first.made_of else ""
            made = f"`clipstill shards {made}`" if made else "`clipstill ingest`"
            again = "`clipstill ingest retry`" if plan.stage_of(missing[0]).is_retry else f"{made} command"
            raise UserError(
                f"{len(missing)} of {len(plan.wanted)} shards are missing ({shown})",
                where=str(folder),
                do=f"Run the same {again} again; it goes on where it stopped",
            )
        records = read_records(folder, [names[shard] for shard in plan.wanted])
        shards = tuple(Shard(folder, record) for record in records.values())
        dataset = Dataset(folder, plan.name, shards, captioned=plan.captioned)
        if len(dataset) == 0:
            raise UserError(
                "the dataset is empty: none of its input rows became a sample",
                where=str(folder),
                do="Its NNNNN.parquet files give the cause of every row",
            )
        return dataset
