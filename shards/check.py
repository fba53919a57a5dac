"""Check one shard: every byte hashed, the tar read member by member, every image decoded, the ledger against both."""

from __future__ import annotations

import io
import mmap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from shards.arrow_files import refuse_other_columns
from shards.errors import UserError
from shards.fingerprint import sha256_file
from shards.keys import is_key
from shards.record import ShardRecord
from shards.shard import Shard
from shards.storage import Folder
from shards.tar_members import Member, TarError, tar_members
from shards.task import Spec

_LEDGER = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("key", "status")])


@dataclass(frozen=True)
class CheckSpec(Spec):
    """One published shard."""

    record: ShardRecord = field(kw_only=True, compare=False)


class CheckTask:
    """Check each shard by itself; what comes of it is a `Found`."""

    name = "verify"

    def __init__(self, folder: Folder, records: Sequence[ShardRecord], overlap: int, *, decode: bool) -> None:
        self._folder, self._records, self.overlap, self._decode = folder, records, overlap, decode

    def __getstate__(self) -> dict[str, Any]:
        # Workers get their records one by one.
        return {**self.__dict__, "_records": ()}

    def specs(self) -> Iterator[CheckSpec]:
        for record in self._records:
            yield CheckSpec(record.shard, self._folder, record.fingerprint, record=record)

    def open(self) -> CheckWorker:
        return CheckWorker(decode=self._decode)


class CheckWorker:
    """Checks one shard after the other."""

    def __init__(self, *, decode: bool) -> None:
        self._decode = decode
        self._quiet = ExitStack()
        # Here, not where the images are opened: changing the filters is not safe in threads.
        self._quiet.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")

    def close(self) -> None:
        self._quiet.close()

    def run(self, spec: CheckSpec) -> Found:
        return _check(spec.folder, spec.record, decode=self._decode)


@dataclass(frozen=True)
class Found:
    """Of one shard: the keys in its ledger, None if it cannot be read; those of its samples; what is wrong.

    `absent` are the problems that a look at names and sizes shows. `captionless`: how many captions are empty.
    `lost_tar`: whether a problem is of a tar elsewhere.
    """

    ledger: list[str] | None
    samples: list[str]
    problems: list[str]
    absent: list[str]
    captionless: int = 0
    lost_tar: bool = False


def _check(folder: Folder, record: ShardRecord, *, decode: bool) -> Found:
    problems: list[str] = []
    absent: list[str] = []
    lost_tar = False
    for file in record.files:
        where, own_name = file.place(folder)
        size = where.size(own_name)
        if size != file.bytes:
            lost_tar = lost_tar or bool(file.at)
            state = "is missing" if size is None else f"has {size} bytes"
            absent.append(f"{file.at or file.name} {state}, the record says {file.bytes}")
            continue
        try:
            got = sha256_file(where.fetch(own_name, file.sha256, fresh=True))
        except OSError as error:
            problems.append(str(error))
            continue
        if got != file.sha256:
            lost_tar = lost_tar or bool(file.at)
            problems.append(f"{file.at or file.name} hashes to {got[:16]}..., the record says {file.sha256[:16]}...")
    name = f"{record.shard:05d}.parquet"
    keys: list[str] | None = None
    kept: list[str] = []
    try:
        # All of it: its pages carry checksums. It has times in it, so the record does not name its hash.
        ledger = pq.read_table(io.BytesIO(folder.read(name)), page_checksum_verification=True)
        refuse_other_columns(ledger, _LEDGER)
        keys, kept = ledger["key"].to_pylist(), ledger.filter(pc.equal(ledger["status"], "success"))["key"].to_pylist()
    except FileNotFoundError:
        problems.append(f"{name} is missing")
    except (OSError, pa.ArrowException, ValueError) as error:
        problems.append(f"{name} cannot be read ({error})")
    if absent or problems:
        return Found(keys, [], absent + problems, absent, lost_tar=lost_tar)
    shard = Shard(folder, record)
    try:
        found = _check_tar(shard, decode=decode) + _check_ledger(shard, kept)
        bad, captionless = _check_captions(shard)
        return Found(keys, shard.keys, found + bad, [], captionless)
    except UserError as error:
        tar = record.file(".tar")
        is_tars = bool(tar.at) and error.where == str(tar.place(folder)[0])
        return Found(keys, [], [error.problem], [], lost_tar=is_tars)


def _check_captions(shard: Shard) -> tuple[list[str], int]:
    """What is wrong with captions, and how many are empty."""
    problems, captionless = [], 0
    for row, key in enumerate(shard.keys):
        try:
            captionless += not shard.caption(row).strip()
        except UnicodeDecodeError:
            problems.append(f"the caption of {key} is not UTF-8")
    return problems, captionless


def _check_tar(shard: Shard, *, decode: bool) -> list[str]:
    problems: list[str] = []
    if len(set(shard.keys)) != len(shard.keys):
        problems.append("the index names a key twice")
    entry = shard.record.file(".tar")
    where, name = entry.place(shard.folder)
    try:
        with open(where.fetch(name, entry.sha256), "rb") as file:
            # Closed with the last view of it, which an exception may hold on to.
            members = list(tar_members(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))))
    except TarError as error:
        return [*problems, f"the tar cannot be read ({error})"]
    misplaced = _check_adopted(shard, members) if entry.at else _check_own(shard, members)
    if misplaced:
        return problems + misplaced
    for row, key in enumerate(shard.keys if decode else ()):
        try:
            Image.open(io.BytesIO(shard.image_bytes(row))).load()
        except Exception as error:  # noqa: BLE001 - decoders raise anything; each is a finding
            problems.append(f"the image of {key} does not decode ({error})")
    return problems


def _check_own(shard: Shard, members: list[Member]) -> list[str]:
    """A tar as we write it: three members a sample, in the index's order."""
    problems = [f"key {key!r} is not a safe tar member name" for key in shard.keys if not is_key(key)]
    if len(members) != 3 * len(shard.keys):
        return [*problems, f"the tar has {len(members)} members, the index says {3 * len(shard.keys)}"]
    for row, key in enumerate(shard.keys):
        sample = members[3 * row : 3 * row + 3]
        stems = {member.name.split(".", 1)[0] for member in sample}
        if stems != {key}:
            return [*problems, f"row {row} of the tar holds {sorted(stems)}, the index says {key}"]
        if [(member.offset, member.size) for member in sample] != shard.places(row):
            return [*problems, f"the index gives other places for {key} than the tar"]
        if shard.meta(row).get("key") != key:
            problems.append(f"the JSON of {key} names another key: {shard.meta(row).get('key')!r}")
    return problems


def _check_adopted(shard: Shard, members: list[Member]) -> list[str]:
    """A tar of somebody else's: each part of the index is one whole member of the sample's name."""
    names = {(member.offset, member.size): member.name for member in members if not member.link}
    _, _, tar = (shard.record.file(".tar").at or "").rpartition("/")
    problems = []
    for row, key in enumerate(shard.keys):
        found = [names.get(place) for place in shard.places(row) if place[1] >= 0]
        stem = key.removeprefix(f"{tar.removesuffix('.tar')}/")
        if not all(name is not None and name.startswith(f"{stem}.") for name in found):
            problems.append(f"the index gives other places for {key} than the tar")
    return problems


def _check_ledger(shard: Shard, kept: list[str]) -> list[str]:
    if len(kept) != len(shard.keys):
        return [f"the ledger counts {len(kept)} successes, the tar holds {shard.count} samples"]
    if kept != shard.keys:
        row = next(row for row, pair in enumerate(zip(kept, shard.keys, strict=True)) if len(set(pair)) == 2)
        return [f"success {row} of the ledger is {kept[row]}, of the tar {shard.keys[row]}"]
    return []
