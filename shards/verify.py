"""Prove a dataset: every byte hashed, every tar read member by member, every row accounted for."""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from shards.fingerprint import sha256_file
from shards.keys import is_key, sample_key
from shards.progress import Meter
from shards.reader import Shard, is_planned, planned_shards, read_dataset_facts, read_rounds
from shards.record import ShardRecord, published_records, read_records
from shards.storage import Folder


@dataclass(frozen=True)
class Report:
    """What `verify_dataset` saw. `problems` is empty for a sound dataset."""

    shards: int
    rows: int
    samples: int
    bytes: int
    problems: tuple[str, ...]


def verify_dataset(url: str) -> Report:
    """Check the dataset at `url` against its records; reads every byte and decodes every image.

    Checked: every planned shard is published; sizes and SHA-256 of every file; tar members (names, order, no key
    twice, none missing) against the index; every image decodes; ledger rows and successes against plan and tar;
    keys unique over the dataset. Raises `UserError` if there is no dataset at `url`.
    """
    folder = Folder(url)
    facts = read_dataset_facts(folder)
    names = published_records(folder)
    planned = planned_shards(folder, facts)
    problems = [f"shard {shard:05d}: not published" for shard in planned if shard not in names]
    problems += [
        f"shard {shard:05d}: published, but not in the plan"
        for shard, name in sorted(names.items())
        if not is_planned(planned, name)
    ]
    records = read_records(folder, names.values())
    seen: dict[str, int] = {}
    rows = samples = size = 0
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Meter("verify", len(records), unit="shards") as meter,
        warnings.catch_warnings(),
    ):
        # Here, not where the images are opened: changing the filters is not safe in threads.
        warnings.simplefilter("ignore")
        for record, found in zip(
            records.values(), pool.map(lambda r: _check(folder, r), records.values()), strict=True
        ):
            problems += [f"shard {record.shard:05d}: {problem}" for problem in found.problems]
            if "parts" in facts and record.shard < facts["shards"]:
                problems += _check_rows(facts["name"], record.shard, rows, found.ledger)
            for key in found.keys:
                if seen.setdefault(key, record.shard) != record.shard:
                    problems.append(f"key {key} is in shards {seen[key]:05d} and {record.shard:05d}")
            rows += len(found.ledger)
            samples += record.count
            size += sum(file.bytes for file in record.files)
            meter.advance(1, items=record.count)
    wanted = facts["rows"] + sum(added["rows"] for added in read_rounds(folder))
    if not problems and rows != wanted:
        problems.append(f"the ledgers hold {rows} rows, the plan {wanted}")
    return Report(len(records), rows, samples, size, tuple(problems))


@dataclass(frozen=True)
class _Found:
    keys: list[str]
    ledger: list[str]
    problems: list[str]


def _check(folder: Folder, record: ShardRecord) -> _Found:
    problems: list[str] = []
    for file in record.files:
        size = folder.size(file.name)
        if size != file.bytes:
            state = "is missing" if size is None else f"has {size} bytes"
            problems.append(f"{file.name} {state}, the record says {file.bytes}")
            continue
        try:
            got = sha256_file(folder.fetch(file.name, file.sha256, fresh=True))
        except OSError as error:
            problems.append(str(error))
            continue
        if got != file.sha256:
            problems.append(f"{file.name} hashes to {got[:16]}..., the record says {file.sha256[:16]}...")
    name = f"{record.shard:05d}.parquet"
    try:
        # All of it: its pages carry checksums. It has times in it, so the record does not name its hash.
        ledger = pq.read_table(io.BytesIO(folder.read(name)), page_checksum_verification=True)
    except FileNotFoundError:
        problems.append(f"{name} is missing")
    except (OSError, pa.ArrowException) as error:
        problems.append(f"{name} cannot be read ({error})")
    if problems:
        return _Found([], [], problems)
    shard = Shard(folder, record)
    problems += _check_tar(shard) + _check_ledger(shard, ledger)
    return _Found(shard.keys, ledger["key"].to_pylist(), problems)


def _check_rows(name: str, shard: int, first: int, ledger: list[str]) -> list[str]:
    """Every row of the input stands in the ledgers once, in order; this shard's begin with row `first`."""
    for place, key in enumerate(ledger):
        if key != sample_key(name, first + place):
            return [f"shard {shard:05d}: ledger row {place} is {key}, the plan's is {sample_key(name, first + place)}"]
    return []


def _check_tar(shard: Shard) -> list[str]:
    problems: list[str] = []
    if len(shard.keys) != shard.count:
        problems.append(f"the index has {len(shard.keys)} rows, the record says {shard.count}")
    if len(set(shard.keys)) != len(shard.keys):
        problems.append("the index names a key twice")
    problems += [f"key {key!r} is not a safe tar member name" for key in shard.keys if not is_key(key)]
    entry = shard.record.file(".tar")
    try:
        with tarfile.open(shard.folder.fetch(entry.name, entry.sha256)) as tar:
            members = tar.getmembers()
    except tarfile.TarError as error:
        return [*problems, f"the tar cannot be read ({error})"]
    if len(members) != 3 * len(shard.keys):
        return [*problems, f"the tar has {len(members)} members, the index says {3 * len(shard.keys)}"]
    for row, key in enumerate(shard.keys):
        sample = members[3 * row : 3 * row + 3]
        stems = {member.name.split(".", 1)[0] for member in sample}
        if stems != {key}:
            problems.append(f"row {row} of the tar holds {sorted(stems)}, the index says {key}")
            break
        if [(member.offset_data, member.size) for member in sample] != shard.places(row):
            problems.append(f"the index gives other places for {key} than the tar")
            break
        if shard.meta(row).get("key") != key:
            problems.append(f"the JSON of {key} names another key: {shard.meta(row).get('key')!r}")
        try:
            Image.open(io.BytesIO(shard.image_bytes(row))).load()
        except Exception as error:  # noqa: BLE001 - decoders raise anything; each is a finding
            problems.append(f"the image of {key} does not decode ({error})")
    return problems


def _check_ledger(shard: Shard, ledger: pa.Table) -> list[str]:
    kept = ledger.filter(pc.equal(ledger["status"], "success"))["key"].to_pylist()
    if len(kept) != len(shard.keys):
        return [f"the ledger counts {len(kept)} successes, the tar holds {shard.count} samples"]
    if kept != shard.keys:
        row = next(row for row, pair in enumerate(zip(kept, shard.keys, strict=True)) if len(set(pair)) == 2)
        return [f"success {row} of the ledger is {kept[row]}, of the tar {shard.keys[row]}"]
    return []
