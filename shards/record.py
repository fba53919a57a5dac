"""Shard records: what "done" means.

A shard of a stage is done when its record is published and the record's fingerprint (settings, schema version,
parent's content) is the one wanted. Never by rank, by a counter or by a payload merely existing.

A record is a small JSON file whose *name* carries everything that decides:

    _records/00042.<fingerprint>.<content>.json

so one listing of `_records` tells what is done and, through `content` (a hash over the payload files' hashes), what
exactly it is: the next stage's fingerprints are made from that. `_records/manifest.jsonl` holds all records in one
file so that a reader need not open them one by one; it is derived, and only entries whose names the listing shows
are believed.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from json.encoder import encode_basestring_ascii as _quoted
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field

from shards.errors import UserError
from shards.storage import Folder
from shards.typed_json import parsed

RECORDS = "_records"
MANIFEST = "manifest.jsonl"

_Count = Annotated[int, Field(ge=0, lt=1 << 32)]
_AS_WRITTEN = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One payload file: its name in the stage's folder, size in bytes and SHA-256.

    A tar that was adopted lies `at` another URL, and has a name here all the same; `modified` is its time on a local
    disk then, in nanoseconds since 1970.
    """

    __pydantic_config__ = _AS_WRITTEN

    name: str
    bytes: Annotated[int, Field(ge=0, lt=1 << 53)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    at: str | None = None
    modified: int | None = None

    def place(self, folder: Folder) -> tuple[Folder, str]:
        """The folder it lies in, and its name there; `folder` is the stage's."""
        if self.at is None:
            return folder, self.name
        parent, _, name = self.at.rpartition("/")
        return Folder(parent or "/"), name


@dataclass(frozen=True)
class ShardRecord:
    """What one shard task published.

    `fingerprint` names what was asked for, `parent` the content of the shard it was made from ("" for none),
    `count` the samples inside, `stats` numbers that add up over shards. `beside` names files that belong to it, but
    whose bytes differ from run to run.
    """

    __pydantic_config__ = _AS_WRITTEN

    shard: _Count
    fingerprint: str
    parent: str
    count: _Count
    files: tuple[FileEntry, ...]
    stats: Mapping[str, int | float] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @cached_property
    def content(self) -> str:
        """16 hex digits over the payload: equal contents mean equal files, byte for byte."""
        # The fingerprint of [[name, bytes, sha256], ...], its JSON put together here: a manifest needs 100,000.
        files = [f"[{_quoted(file.name)},{file.bytes},{_quoted(file.sha256)}]" for file in self.files]
        return hashlib.sha256(f"[{','.join(files)}]".encode()).hexdigest()[:16]

    @property
    def name(self) -> RecordName:
        return RecordName(self.shard, self.fingerprint, self.content)

    def file(self, suffix: str) -> FileEntry:
        """The one payload file whose name ends with `suffix`."""
        (entry,) = (file for file in self.files if file.name.endswith(suffix))
        return entry

    def to_json(self) -> str:
        told = asdict(self)
        told["files"] = [{name: value for name, value in file.items() if value is not None} for file in told["files"]]
        return json.dumps(told, sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes) -> ShardRecord:
        """Raises `ValueError` for what is no record."""
        record = parsed(ShardRecord, text)
        for file in record.files:
            if file.at is not None and not (file.at.startswith("/") or "://" in file.at):
                raise ValueError(f"{file.name} lies at {file.at!r}, which is no whole path")
        return record


class RecordName(NamedTuple):
    """What a record's file name says."""

    shard: int
    fingerprint: str
    content: str

    def __str__(self) -> str:
        return f"{self.shard:05d}.{self.fingerprint}.{self.content}.json"

    @staticmethod
    def parse(name: str) -> RecordName | None:
        parts = name.split(".")
        if len(parts) != 4 or parts[3] != "json" or not parts[0].isdigit():
            return None
        return RecordName(int(parts[0]), parts[1], parts[2])


def published_records(folder: Folder) -> dict[int, RecordName]:
    """Shard number → record name, from one listing. Raises `UserError` if a shard has two records."""
    found: dict[int, RecordName] = {}
    for text in folder.child(RECORDS).names():
        name = RecordName.parse(text)
        if name is None:
            continue
        if name.shard in found:
            raise UserError(
                f"shard {name.shard:05d} has two records ({found[name.shard]} and {name})",
                where=f"{folder}/{RECORDS}",
                do="Two runs wrote here at once: delete both records and run one again",
            )
        found[name.shard] = name
    return found


def is_made(names: Mapping[int, RecordName], shard: int, fingerprint: str) -> bool:
    """Whether a shard has a record with the wanted fingerprint, or with any if that is ""."""
    name = names.get(shard)
    return name is not None and fingerprint in {"", name.fingerprint}


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without looking for cycles: among a million objects that are made to stay it takes as long as making them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_record(folder: Folder, name: RecordName) -> ShardRecord:
    """One record from its own file. Raises `UserError` if it is damaged."""
    records = folder.child(RECORDS)
    # Its name tells whether it is whole, so that a store need not be asked for its size first.
    with contextlib.suppress(ValueError):
        return _named(records.read_small(str(name)), name)
    try:
        return _named(records.read(str(name)), name)
    except ValueError as error:
        raise UserError(
            f"record {name} is damaged ({error})",
            where=f"{folder}/{RECORDS}",
            do="Delete it, and run the command that made it again",
        ) from None


def _named(text: bytes, name: RecordName) -> ShardRecord:
    record = ShardRecord.from_json(text)
    if record.name != name:
        raise ValueError(f"it holds {record.name}")
    return record


class Gathered(NamedTuple):
    """Shard number → record, in shard order, and whether the manifest had all of them and no others."""

    records: dict[int, ShardRecord]
    is_manifest_whole: bool


def read_records(
    folder: Folder, wanted: Iterable[RecordName] | None = None, *, most: int | None = None
) -> dict[int, ShardRecord]:
    """Shard number → record, for `wanted` (default: all that are published), in shard order.

    Of those that are not in the manifest, `most` are looked at, spread over all; the others are left out.
    Raises `UserError` for a record that is damaged.
    """
    return gather_records(folder, wanted, most=most).records


@uncollected()
def gather_records(folder: Folder, wanted: Iterable[RecordName] | None = None, *, most: int | None = None) -> Gathered:
    """As `read_records`."""
    names = sorted(published_records(folder).values() if wanted is None else wanted)
    missing = set(names)
    held: dict[RecordName, ShardRecord] = {}
    others = 0
    for record in _manifest(folder):
        name = record.name
        if name in missing:
            missing.remove(name)
            held[name] = record
        else:
            others += 1
    is_whole = not missing and not others
    if most is not None and len(missing) > most:
        unread = sorted(missing)
        missing = {unread[place * len(unread) // most] for place in range(most)}
    pool = ThreadPoolExecutor(16)
    try:
        held |= zip(missing, pool.map(lambda name: read_record(folder, name), missing), strict=True)
    finally:
        # An interrupt waits for none of them: in an outage that would be minutes.
        pool.shutdown(wait=False, cancel_futures=True)
    return Gathered({name.shard: held[name] for name in names if name in held}, is_whole)


def _manifest(folder: Folder) -> Iterator[ShardRecord]:
    try:
        lines = io.BytesIO(folder.child(RECORDS).read(MANIFEST))
    except FileNotFoundError:
        return
    for line in lines:
        # Of a line that is damaged the record itself is read.
        with contextlib.suppress(ValueError):
            yield ShardRecord.from_json(line)


def compact(folder: Folder) -> dict[int, ShardRecord]:
    """Write the derived manifest of everything published here, and return it."""
    found = read_records(folder)
    lines = "".join(record.to_json() + "\n" for record in found.values())
    folder.child(RECORDS).publish(MANIFEST, lines.encode())
    return found
