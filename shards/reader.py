"""Read a published dataset: strict about what is there, one seek a sample.

A dataset is readable when every shard its plan names has a published record. `Shard` maps the tar and its index into
memory; nothing is scanned. Files on an object store are copied once to a local cache kept by hash.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from shards import copies
from shards.arrow_files import read_arrow, refuse_other_columns
from shards.dataset import DatasetPlan
from shards.errors import UserError
from shards.fingerprint import fingerprint
from shards.record import FileEntry, ShardRecord, published_records, read_records, uncollected
from shards.storage import Folder
from shards.writer import INDEX_SCHEMA

_INDEX = pa.schema([field.with_nullable(False) for field in INDEX_SCHEMA])
_ADOPTED = pa.schema([pa.field("caption", pa.string()), pa.field("label", pa.int64(), nullable=False)])
"""What the index of an adopted tar has besides."""


def map_file(folder: Folder, entry: FileEntry, remake: str) -> mmap.mmap:
    """The bytes of a published file, mapped read-only.

    Raises `UserError` if it is absent or has another size than its record says; `remake` tells how to make it again.
    """
    where, name = entry.place(folder)
    held = _opened(where, name, entry.sha256)
    try:
        seen = None if held is None else os.fstat(held)
        if held is None or seen is None or seen.st_size != entry.bytes:
            state = "is missing" if seen is None else f"has {seen.st_size} bytes"
            wrong = f"{name} {state}, its record says {entry.bytes}"
        elif not entry.bytes:
            wrong = f"{name} is empty"  # and cannot be mapped
        elif entry.modified not in (None, seen.st_mtime_ns):
            wrong = f"{name} was written to since it was adopted"
        else:
            return mmap.mmap(held, 0, access=mmap.ACCESS_READ)
        raise UserError(wrong, where=str(where), do=f"{remake}; `verify` shows what else is damaged")
    finally:
        if held is not None:
            os.close(held)


def _opened(folder: Folder, name: str, sha256: str) -> int | None:
    """A descriptor of the file, None if it is absent; of a copy one that keeps it, as does a map that is made of it."""
    path = folder.fetch(name, sha256)
    if not folder.is_local:
        while (held := copies.use(path)) is None:  # removed to make room since
            path = folder.fetch(name, sha256)
        return held
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None


class Shard:
    """One shard, samples numbered 0..count-1 in the tar's order. Cheap to make and to pickle; maps files on first use.

    Raises `UserError` if a file is absent or has another size than the record says.
    """

    def __init__(self, folder: Folder, record: ShardRecord) -> None:
        self.folder, self.record = folder, record

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "record": self.record}

    @property
    def id(self) -> int:
        return self.record.shard

    @property
    def count(self) -> int:
        return self.record.count

    @property
    def content(self) -> str:
        """16 hex digits over the shard's files; the `parent` of everything made from it."""
        return self.record.content

    def _map(self, suffix: str) -> mmap.mmap:
        return map_file(self.folder, self.record.file(suffix), "Run the command that made it again")

    @cached_property
    def _tar(self) -> mmap.mmap:
        return self._map(".tar")

    @cached_property
    def _index(self) -> dict[str, Any]:
        entry = self.record.file(".index.arrow")
        mapped = self._map(".index.arrow")
        try:
            # A thousandth of what reading its images costs, and a flipped bit would hand out other bytes as images.
            if (got := hashlib.sha256(mapped).hexdigest()) != entry.sha256:
                raise ValueError(f"hashes to {got[:16]}..., its record says {entry.sha256[:16]}...")
            return _places(read_arrow(mapped), self.record)
        except ValueError as error:
            raise UserError(
                f"{entry.name} {error}", where=str(self.folder), do="Run the command that made it again"
            ) from None

    @property
    def keys(self) -> list[str]:
        """The keys in order."""
        keys: list[str] = self._index["key"]
        return keys

    @cached_property
    def keys_digest(self) -> str:
        """16 hex digits over the keys in order: equal digests mean equal rows. Known once, it outlives `release`."""
        was_mapped = "_index" in self.__dict__
        digest = fingerprint(self.keys)
        if not was_mapped:
            self.__dict__.pop("_index", None)
        return digest

    def release(self) -> None:
        """Let go of the mapped files; the next use maps them again. Safe while other threads read."""
        for name in ("_tar", "_index"):
            self.__dict__.pop(name, None)

    @property
    def is_local(self) -> bool:
        """Whether nothing of it has to be copied from an object store."""
        return all(self.record.file(suffix).place(self.folder)[0].is_local for suffix in (".tar", ".index.arrow"))

    def fetch(self) -> None:
        """Have the files copied from an object store, so that the next use need not wait for it."""
        for suffix in (".tar", ".index.arrow"):
            entry = self.record.file(suffix)
            where, name = entry.place(self.folder)
            where.fetch(name, entry.sha256)

    def _part(self, part: str, row: int) -> bytes:
        start = int(self._index[f"{part}_offset"][row])
        return self._tar[start : start + int(self._index[f"{part}_size"][row])]

    def _has(self, part: str, row: int) -> bool:
        return int(self._index[f"{part}_size"][row]) >= 0

    def places(self, row: int) -> list[tuple[int, int]]:
        """Offset and size in bytes, within the tar, of a sample's image, caption and metadata."""
        return [
            (int(self._index[f"{part}_offset"][row]), int(self._index[f"{part}_size"][row]))
            for part in ("image", "text", "json")
        ]

    def image_bytes(self, row: int) -> bytes:
        """The encoded image of a sample."""
        return self._part("image", row)

    def caption(self, row: int) -> str:
        """The caption of a sample; of an adopted one without a member for it the metadata's, or none."""
        if self._has("text", row):
            return self._part("text", row).decode()
        told: str | None = self._index["caption"][row]
        return told or ""

    def meta(self, row: int) -> dict[str, Any]:
        """The metadata of a sample: key, url, sizes, and the columns kept from the input; an adopted one's own."""
        data: dict[str, Any] = json.loads(self._part("json", row)) if self._has("json", row) else {}
        if "label" in self._index:
            data["key"] = self.keys[row]
            if self._index["label"][row] >= 0:
                data["label"] = int(self._index["label"][row])
        return data


def _places(table: pa.Table, record: ShardRecord) -> dict[str, Any]:
    """The columns of an index. Raises `ValueError` for one that does not fit its record and tar."""
    refuse_other_columns(table, _INDEX)
    if "label" in table.column_names or record.file(".tar").at is not None:
        refuse_other_columns(table, _ADOPTED)
    if table.num_rows != record.count:
        raise ValueError(f"has {table.num_rows} rows, its record says {record.count}")
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
    for part in ("image", "text", "json"):
        start, size = columns[f"{part}_offset"], columns[f"{part}_size"]
        most = record.file(".tar").bytes
        if ((start < 0) | (start > most) | (size < -1) | (size > most - start)).any():
            raise ValueError(f"has places of {part}s beyond the tar's {most} bytes")
    return {"key": table["key"].to_pylist(), **columns}


class Dataset:
    """A complete dataset: `name`, and its `shards` in order. Without `captioned`, every sample's caption is empty."""

    def __init__(self, folder: Folder, name: str, shards: tuple[Shard, ...], *, captioned: bool = True) -> None:
        self.folder, self.name, self.shards, self.captioned = folder, name, shards, captioned

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    @property
    def content(self) -> str:
        """16 hex digits over every shard's content: equal datasets, byte for byte."""
        return fingerprint([shard.content for shard in self.shards])

    @staticmethod
    def together(datasets: Sequence[Dataset]) -> Dataset:
        """All their shards in a row; its folder is the first one's. Keys are unique within each dataset only."""
        first, *others = datasets
        if not others:
            return first
        return Dataset(
            first.folder,
            " + ".join(dataset.name for dataset in datasets),
            tuple(shard for dataset in datasets for shard in dataset.shards),
            captioned=all(dataset.captioned for dataset in datasets),
        )

    @staticmethod
    @uncollected()
    def open(url: str) -> Dataset:
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
            made = "`clipstill shards adopt`" if plan.stages[0].adopted else "`clipstill ingest`"
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
