"""Publish what one shard task made: payload files first, the record last, each whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from shards.fingerprint import sha256_file
from shards.record import RECORDS, FileEntry, RecordName, ShardRecord, published_records, read_record
from shards.storage import Folder
from shards.task import Spec
from shards.writer import ShardWriter


class SupersededError(Exception):
    """Another worker published this very spec in the meantime: its `record` stands, and nothing here is published.

    The runner takes it for success.
    """

    def __init__(self, record: ShardRecord) -> None:
        super().__init__(str(record.name))
        self.record = record


class Publication:
    """Collects the payload of `spec` under its final names, then publishes the record that makes it count.

    An older record of the shard is withdrawn before its payload is touched, so a record never names other bytes
    than those beside it. `parent` is the content of the shard this one was made from.
    """

    def __init__(self, spec: Spec, parent: str = "") -> None:
        self._spec, self._parent = spec, parent
        self._files: list[FileEntry] = []
        self._others: list[str] = []
        self._withdrawn = False

    def standing(self) -> ShardRecord | None:
        """The record another worker published for this very spec in the meantime, if any: then publish nothing."""
        return self._standing(self._names())

    @contextlib.contextmanager
    def file(self, suffix: str) -> Iterator[Path]:
        """A local path to write; appears as `NNNNN<suffix>` when the block ends without an exception.

        Raises `SupersededError` if this very spec has a record by then.
        """
        with self._beside(suffix) as path:
            yield path
            entry = FileEntry(f"{self._spec.shard:05d}{suffix}", path.stat().st_size, sha256_file(path))
        self._files.append(entry)

    def refer(self, suffix: str, entry: FileEntry) -> None:
        """Have the record name, as `NNNNN<suffix>`, a file that is somebody else's and lies elsewhere (`entry.at`)."""
        self._files.append(replace(entry, name=f"{self._spec.shard:05d}{suffix}"))

    @contextlib.contextmanager
    def beside(self, suffix: str) -> Iterator[Path]:
        """As `file`, for one whose bytes the record does not name: it has times in it, which no second run repeats.

        Of two workers at the same shard the last one's stays, whichever of them publishes the record.
        """
        with self._beside(suffix) as path:
            yield path
        self._others.append(f"{self._spec.shard:05d}{suffix}")

    @contextlib.contextmanager
    def samples(self) -> Iterator[ShardWriter]:
        """A writer whose tar and index appear when the block ends without an exception."""
        with self.file(".tar") as path, ShardWriter(path) as writer:
            yield writer
        with self.file(".index.arrow") as path:
            writer.write_index(path)

    @contextlib.contextmanager
    def _beside(self, suffix: str) -> Iterator[Path]:
        with self._spec.folder.staged(f"{self._spec.shard:05d}{suffix}", by_holder=True) as path:
            yield path
            self._withdraw()

    def finish(self, count: int, stats: Mapping[str, float]) -> ShardRecord:
        """Publish and return the record; of a folder that is held by a lease the only one that the shard then has.

        Raises `UserError` if another run has taken over the lease.
        """
        spec = self._spec
        record = ShardRecord(
            spec.shard, spec.fingerprint, self._parent, count, tuple(self._files), dict(stats), tuple(self._others)
        )
        records = spec.folder.child(RECORDS)
        if spec.folder.refuse_lost():
            # A run that was taken for dead may have published in the meantime. The files it names are gone.
            for name in self._names():
                records.delete(str(name))
        records.publish(str(record.name), record.to_json().encode(), by_holder=True)
        return record

    def _standing(self, names: list[RecordName]) -> ShardRecord | None:
        for name in names:
            if name.fingerprint == self._spec.fingerprint:
                return read_record(self._spec.folder, name)
        return None

    def _names(self) -> list[RecordName]:
        texts = self._spec.folder.child(RECORDS).names(f"{self._spec.shard:05d}.")
        return [name for name in map(RecordName.parse, texts) if name is not None]

    def _withdraw(self) -> None:
        if not self._withdrawn:
            # One listing for both questions: what is published after it is not touched.
            names = self._names()
            standing = self._standing(names)
            if standing is not None:
                raise SupersededError(standing)
            if names:
                self._spec.folder.refuse_lost()
            for name in names:
                self._spec.folder.child(RECORDS).delete(str(name))
            self._withdrawn = True


def withdraw_from(folder: Folder, first: int) -> None:
    """Remove the shards from number `first` on, which an earlier run of other inputs has left: records, then files."""
    for shard, name in published_records(folder).items():
        if shard >= first:
            folder.child(RECORDS).delete(str(name))
            for suffix in (".tar", ".index.arrow", ".parquet"):
                folder.delete(f"{shard:05d}{suffix}")
