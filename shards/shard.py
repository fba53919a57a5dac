"""Read one published shard: its tar and its index are mapped into memory, and a sample is one seek away.

Files on an object store are copied once to a local cache kept by hash.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards import copies
from shards.arrow_files import read_arrow, refuse_other_columns
from shards.errors import UserError
from shards.fingerprint import fingerprint
from shards.record import FileEntry, ShardRecord
from shards.sample import texts_of
from shards.storage import Folder
from shards.writer import INDEX_SCHEMA

_INDEX = pa.schema([field.with_nullable(False) for field in INDEX_SCHEMA])
_ADOPTED = pa.schema([pa.field("caption", pa.string()), pa.field("label", pa.int64(), nullable=False)])
"""What the index of an adopted tar has besides."""

_ANCESTORS = b"clipstill.ancestors"
"""In a selection's index: content and number of samples of each shard of which a column `row_N` has the rows."""


class Ancestor(NamedTuple):
    """A shard that samples were selected from: its content, its samples, and (n,) the row of each sample there."""

    content: str
    samples: int
    rows: npt.NDArray[np.int64]


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

    def _table(self) -> pa.Table:
        entry = self.record.file(".index.arrow")
        mapped = self._map(".index.arrow")
        try:
            # A thousandth of what reading its images costs, and a flipped bit would hand out other bytes as images.
            if (got := hashlib.sha256(mapped).hexdigest()) != entry.sha256:
                raise ValueError(f"hashes to {got[:16]}..., its record says {entry.sha256[:16]}...")
            table = read_arrow(mapped)
            _check_places(table, self.record)
        except ValueError as error:
            raise UserError(
                f"{entry.name} {error}", where=str(self.folder), do="Run the command that made it again"
            ) from None
        return table

    @cached_property
    def _index(self) -> dict[str, Any]:
        table = self._table()
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "key"}
        return {"key": table["key"].to_pylist(), **columns}

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

    def key_array(self) -> pa.StringArray:
        """The keys in order, as Arrow has them; the files are let go of."""
        table = self._table()
        return table["key"].combine_chunks().cast(pa.string())

    @property
    def ancestry(self) -> list[tuple[str, int]]:
        """Of `ancestors` the content and the number of samples, from the head of the index alone."""
        try:
            with pa.ipc.open_file(pa.py_buffer(self._map(".index.arrow"))) as reader:
                told = json.loads((reader.schema.metadata or {}).get(_ANCESTORS, b"[]"))
        except (pa.ArrowException, ValueError):
            return []  # whoever reads it is told what is wrong
        return [(content, count) for content, count in told]

    @property
    def ancestors(self) -> list[Ancestor]:
        """Of a selection's shard the one that its samples were selected from, that one's own, and so on."""
        if not self.record.parent:
            return []
        return _ancestors(self._table())

    def selected_index(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """The index of these of its samples, for a shard whose ancestor this one is."""
        ancestors = [Ancestor(self.content, self.count, np.arange(self.count)), *self.ancestors]
        table = self._table()
        own = [name for name in table.column_names if not name.startswith("row_")]
        index = table.select(own).take(pa.array(rows))
        for number, ancestor in enumerate(ancestors):
            index = index.append_column(f"row_{number}", pa.array(ancestor.rows[rows], pa.int64()))
        told = json.dumps([(ancestor.content, ancestor.samples) for ancestor in ancestors])
        return index.replace_schema_metadata({_ANCESTORS: told.encode()})

    def tar_elsewhere(self) -> FileEntry:
        """Its tar, as a record in another folder names it."""
        entry = self.record.file(".tar")
        return entry if entry.at else replace(entry, at=f"{self.folder}/{entry.name}")

    def release(self) -> None:
        """Let go of the mapped files; the next use maps them again. Safe while other threads read."""
        for name in ("_tar", "_index"):
            self.__dict__.pop(name, None)

    @property
    def tar(self) -> str:
        """The path or URL of its tar."""
        folder, name = self.record.file(".tar").place(self.folder)
        return f"{folder}/{name}"

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

    def captions(self, row: int) -> list[str]:
        """All captions of a sample, `caption` first: the metadata's field `captions` has the others."""
        return self.all_captions(self.caption(row), self.meta(row))

    def all_captions(self, caption: str, meta: Mapping[str, Any]) -> list[str]:
        """As `captions`, from what was read of the sample."""
        others = texts_of(meta.get("captions"))
        # In datasets of ours the field has those after the first; others write all of them there.
        return others if self.is_adopted and others[:1] == [caption] else [caption, *others]

    @property
    def is_adopted(self) -> bool:
        """Whether its samples are as somebody else wrote them."""
        return "label" in self._index

    def meta(self, row: int) -> dict[str, Any]:
        """The metadata of a sample: key, url, sizes, and the columns kept from the input; an adopted one's own."""
        data: dict[str, Any] = json.loads(self._part("json", row)) if self._has("json", row) else {}
        if self.is_adopted:
            data["key"] = self.keys[row]
            if self._index["label"][row] >= 0:
                data["label"] = int(self._index["label"][row])
        return data


def _ancestors(table: pa.Table) -> list[Ancestor]:
    """What a selection's index says of the shards that its samples are of. Raises `ValueError` if that is not sound."""
    metadata = (table.schema.metadata or {}).get(_ANCESTORS, b"[]")
    try:
        told: Any = json.loads(metadata)
        named = [(str(content), int(samples)) for content, samples in told]
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"does not say what it was selected from, but {metadata[:80]!r}") from None
    rows = pa.schema([pa.field(f"row_{number}", pa.int64(), nullable=False) for number in range(len(named))])
    refuse_other_columns(table, rows)
    found = [Ancestor(*shard, table[name].to_numpy()) for name, shard in zip(rows.names, named, strict=True)]
    for name, ancestor in zip(rows.names, found, strict=True):
        if ((ancestor.rows < 0) | (ancestor.rows >= ancestor.samples)).any():
            raise ValueError(f"has numbers in {name} that are no rows of a shard of {ancestor.samples} samples")
    return found


def _check_places(table: pa.Table, record: ShardRecord) -> None:
    """Raises `ValueError` for an index that does not fit its record and tar."""
    refuse_other_columns(table, _INDEX)
    is_adopted = record.file(".tar").at is not None and not record.parent
    if "label" in table.column_names or is_adopted:
        refuse_other_columns(table, _ADOPTED)
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("has two columns of a name")
    _ancestors(table)
    if table.num_rows != record.count:
        raise ValueError(f"has {table.num_rows} rows, its record says {record.count}")
    most = record.file(".tar").bytes
    for part in ("image", "text", "json"):
        start, size = (table[f"{part}_{what}"].to_numpy() for what in ("offset", "size"))
        if ((start < 0) | (start > most) | (size < -1) | (size > most - start)).any():
            raise ValueError(f"has places of {part}s beyond the tar's {most} bytes")
