"""Prove a dataset: every byte hashed, every tar read member by member, every row accounted for."""

from __future__ import annotations

import io
import mmap
import os
import shlex
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from shards.arrow_files import refuse_other_columns
from shards.dataset import DatasetPlan
from shards.errors import UserError
from shards.fingerprint import sha256_file
from shards.keys import is_key, sample_key, sample_row
from shards.progress import Meter
from shards.record import RECORDS, ShardRecord, published_records, read_records
from shards.shard import Shard
from shards.storage import Folder
from shards.tar_members import Member, TarError, tar_members

_LEDGER = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("key", "status")])


@dataclass(frozen=True)
class Report:
    """What `verify_dataset` saw. `problems` is empty for a sound dataset, else `mend` says what mends it.

    `captionless`: of a dataset with captions, the samples whose caption is empty, which is no problem.
    """

    shards: int
    rows: int
    samples: int
    bytes: int
    problems: tuple[str, ...]
    mend: str = ""
    captionless: int = 0


def verify_dataset(url: str, *, decode: bool = True) -> Report:
    """Check the dataset at `url` against its records; reads every byte and, unless told otherwise, decodes every image.

    Checked: every planned shard is published; sizes and SHA-256 of every file; tar members (names, order, no key
    twice, none missing) against the index; every image decodes, every caption is UTF-8; ledger rows and successes
    against plan and tar; keys unique over the dataset. A bad shard casts no doubt on the others. Memory grows by one
    bit a row.
    Raises `UserError` if there is no dataset at `url`.
    """
    folder = Folder(url)
    plan = DatasetPlan.read(folder)
    names = published_records(folder)
    unmade = set(plan.missing(names))
    damaged = {shard for shard in names if shard not in plan.wanted}
    problems = [f"shard {shard:05d}: not published" for shard in plan.wanted if shard not in names]
    problems += [
        f"shard {shard:05d}: published, but not in the plan" for shard in sorted(names) if shard in unmade | damaged
    ]
    records = read_records(folder, names.values())
    wanted = sum(stage.rows for stage in plan.stages)
    expected = _Rows(plan, wanted, unmade)
    rows = samples = size = captionless = 0
    lost_tars = False
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Meter("verify", len(records), unit="shards") as meter,
        warnings.catch_warnings(),
    ):
        # Here, not where the images are opened: changing the filters is not safe in threads.
        warnings.simplefilter("ignore")
        for record, found in zip(
            records.values(), pool.map(lambda r: _check(folder, r, decode=decode), records.values()), strict=True
        ):
            told = [*found.problems, *expected.check(record, found)] if record.shard in plan.wanted else found.problems
            at = next((f" ({file.at})" for file in record.files if file.at), "")
            problems += [f"shard {record.shard:05d}{at}: {problem}" for problem in told]
            captionless += found.captionless
            lost_tars = lost_tars or found.lost_tar
            # Ingest itself looks at what is there and how large it is; what is wrong inside, only who reads it sees.
            if len(told) > len(found.absent):
                damaged.add(record.shard)
            elif told:
                unmade.add(record.shard)
            rows += len(found.ledger or ())
            samples += record.count
            size += sum(file.bytes for file in record.files)
            meter.advance(1, items=record.count)
    if not problems and rows != wanted:
        problems.append(f"the ledgers hold {rows} rows, the plan {wanted}")
        damaged |= {plan.stages[0].shards - 1, max(plan.wanted)}
    mend = _mend(plan, unmade, damaged, lost_tars=lost_tars) if problems else ""
    return Report(len(records), rows, samples, size, tuple(problems), mend, captionless if plan.captioned else 0)


class _Rows:
    """Which rows each ledger must have: those of the plan's shards follow on each other; a round's are known already
    and fetched again, or new and follow on the last.

    Shards are checked in order. Where one is missing, or its ledger, its record tells how many rows it has, else the
    first row of the next one tells.
    """

    def __init__(self, plan: DatasetPlan, most: int, missing: Iterable[int]) -> None:
        first = plan.stages[0]
        self._name, self._shards, self._rows, self._most = first.name, first.shards, first.rows, most
        self._missing = sorted(missing)
        # Datasets that were written without an input have no rows but their samples.
        self._ordered = first.settings is not None
        self._next: int | None = 0
        self._before = 0
        self._shard = 0
        self._sampled = bytearray(most // 8 + 1)
        self._others: set[str] = set()

    def check(self, record: ShardRecord, found: _Found) -> list[str]:
        """What is wrong with the rows of a shard."""
        if any(self._shard <= shard < record.shard for shard in self._missing):
            self._next = None
        self._shard = record.shard + 1
        problems = []
        if self._ordered and record.shard < self._shards:
            problems = self._check_planned(found, record.stats.get("rows"))
        elif self._ordered:
            problems = self._check_added(found.ledger)
        return problems + [f"key {key} is in an earlier shard too" for key in found.samples if self._is_held(key)][:5]

    def _check_planned(self, found: _Found, told: float | None) -> list[str]:
        ledger, first = found.ledger, self._next
        if ledger is None:
            self._next = None if first is None or told is None else first + int(told)
            return []
        if first is None:
            if found.problems:
                return []  # not one to be believed
            own = sample_row(self._name, ledger[0]) if ledger else None
            first = self._before if own is None else max(own, self._before)
        for place, key in enumerate(ledger):
            if key != sample_key(self._name, first + place):
                self._next = None  # nobody knows which of the two is right, so the next one is believed
                return [f"ledger row {place} is {key}, the plan's is {sample_key(self._name, first + place)}"]
        self._next = self._before = first + len(ledger)
        if told is not None and told != len(ledger):
            self._next = None
            return [f"the ledger has {len(ledger)} rows, the record says {told:g}"]
        return []

    def _check_added(self, ledger: list[str] | None) -> list[str]:
        if ledger is None:
            self._next = None
        for place, key in enumerate(ledger or ()):
            row = sample_row(self._name, key)
            if row is None or row >= self._most or (row > self._rows and self._next is not None):
                return [f"ledger row {place} is {key}, the input has {self._rows} rows"]
            if row >= self._rows:
                self._rows = row + 1
        return []

    def _is_held(self, key: str) -> bool:
        """Whether a sample of this key was seen before; it has been from now on."""
        row = sample_row(self._name, key)
        if row is None or row >= self._most:
            held = key in self._others
            self._others.add(key)
            return held
        held = bool(self._sampled[row >> 3] >> (row & 7) & 1)
        self._sampled[row >> 3] |= 1 << (row & 7)
        return held


def _mend(plan: DatasetPlan, unmade: set[int], damaged: set[int], *, lost_tars: bool) -> str:
    """The line for a shell that makes again what is missing, once what is damaged is gone.

    `lost_tars`: whether tars are not as they were that lie elsewhere.
    """
    folder = plan.folder
    made_of = plan.stages[0].made_of
    if lost_tars and made_of:
        # The dataset that a selection was made of, and its content, come last. Its tars are that one's to mend.
        return shlex.join(["clipstill", "shards", "verify", made_of[-2]])
    if not plan.stages[0].command:
        return f"restore the files from where they came: {folder} does not say which command made it"
    records = [f"{shlex.quote(f'{folder}/{RECORDS}')}/{shard:05d}.*" for shard in sorted(damaged)]
    steps = [f"rm {' '.join(records)}"] if records and folder.is_local else []
    stages = {plan.stage_of(shard).round for shard in unmade | damaged if shard <= max(plan.wanted)}
    hit = [stage for stage in plan.stages if stage.round in stages]
    if any(not stage.is_retry for stage in hit):
        out = folder.url.rpartition("/")[0] if made_of[:1] == ("split",) else folder.url
        steps.append(shlex.join([*plan.lists[-1].command, "--out", out]))
    if hit and hit[-1].is_retry:
        steps.append(shlex.join([*hit[-1].command[:3], folder.url, *hit[-1].command[3:]]))
    before = "" if folder.is_local or not records else f"delete {' '.join(records)}, then: "
    return before + " && ".join(steps)


@dataclass(frozen=True)
class _Found:
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


def _check(folder: Folder, record: ShardRecord, *, decode: bool) -> _Found:
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
        return _Found(keys, [], absent + problems, absent, lost_tar=lost_tar)
    shard = Shard(folder, record)
    try:
        found = _check_tar(shard, decode=decode) + _check_ledger(shard, kept)
        bad, captionless = _check_captions(shard)
        return _Found(keys, shard.keys, found + bad, [], captionless)
    except UserError as error:
        return _Found(keys, [], [error.problem], [])


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
