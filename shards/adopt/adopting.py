"""Make a dataset of tars that are there already: each is read once, and only an index of it is written.

    patterns → tars, in order → for each: members → samples → NNNNN.index.arrow, NNNNN.parquet, a record naming it

A tar that was adopted stays where it is and as it is; later commands read its samples in place.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.adopt.samples import Extensions, Row, kind_of, rows_of, samples_of
from shards.adopt.settings import CAPTIONS, IMAGES, AdoptSettings
from shards.adopt.tars import Tar
from shards.choice import Work
from shards.dataset import DATASET, SCHEMA_VERSION, DatasetPlan, Stage, publish_whole
from shards.errors import ShardError, UserError
from shards.executor import Executor
from shards.fingerprint import fingerprint
from shards.keys import check_dataset_name
from shards.places import refuse_other_things
from shards.publication import Publication, withdraw_from
from shards.record import FileEntry, ShardRecord, compact, published_records
from shards.runner import Summary, run_shards
from shards.shard import Shard
from shards.spelled import words_of
from shards.storage import Folder
from shards.tar_members import TarError, tar_members
from shards.task import Spec
from shards.writer import INDEX_SCHEMA

ADOPTED_SCHEMA = INDEX_SCHEMA.append(pa.field("caption", pa.string())).append(pa.field("label", pa.int64()))
"""Of an adopted tar's index: -1 as the size of a part that is not there; the caption where no member is it as it
stands; -1 for no label."""
_LEDGER = pa.schema([(name, pa.string()) for name in ("key", "status", "error_class", "error_message")])
_OTHER, _FAILED = "other.", "failed."
"""What the numbers of a record begin with that count members which are no sample's, and refused samples by cause."""
_BYTES_A_SECOND = 5e8
"""Of a tar of photos, hashed and indexed on one core."""
_SHOWN = 8
"""Kinds of other members that are named."""
_REST = "of other kinds"


@dataclass(frozen=True)
class Adopted:
    """What came of it: of `rows` samples those that were `refused`, by cause; members of none, by how they end."""

    summary: Summary
    tars: int
    rows: int
    refused: Counter[str]
    others: Counter[str]


@dataclass(frozen=True)
class AdoptSpec(Spec):
    """One tar."""

    tar: Tar = field(kw_only=True)


@dataclass(frozen=True)
class AdoptTask:
    """Index each tar, where it lies."""

    settings: AdoptSettings
    tars: tuple[Tar, ...]

    name = "adopt"
    overlap = 1

    def specs(self) -> Iterator[AdoptSpec]:
        chosen = self.settings
        rules = [chosen.images_end, chosen.captions_end, chosen.captions, chosen.keys_of_tars]
        for shard, tar in enumerate(self.tars):
            mark = fingerprint([SCHEMA_VERSION, "adopt", rules, asdict(tar)])
            yield AdoptSpec(shard, Folder(self.settings.out), mark, tar=tar)

    def open(self) -> AdoptWorker:
        return AdoptWorker(self.settings)


class AdoptWorker:
    """Reads one tar after the other."""

    def __init__(self, settings: AdoptSettings) -> None:
        self._settings = settings

    def close(self) -> None:
        pass

    def run(self, spec: AdoptSpec) -> ShardRecord:
        publication = Publication(spec)
        with spec.tar.mapped() as view:
            try:
                found = _read(view, spec.tar, self._settings)
            except TarError as error:
                raise ShardError(f"{spec.tar.url}: {error}") from None
            digest = hashlib.sha256(view).hexdigest()
        if spec.tar.changed():
            raise ShardError(f"{spec.tar.url}: was written to while it was read")
        publication.refer(".tar", FileEntry("", spec.tar.bytes, digest, spec.tar.url, spec.tar.modified))
        with publication.file(".index.arrow") as out, pa.ipc.new_file(str(out), ADOPTED_SCHEMA) as sink:
            sink.write_table(found.index)
        with publication.beside(".parquet") as out:
            pq.write_table(found.ledger, out, write_page_checksum=True)
        rows, samples = len(found.ledger), len(found.index)
        others = {f"{_OTHER}{name}": count for name, count in _most_common(found.others).items()}
        causes = Counter(cause for cause in found.ledger["error_class"].to_pylist() if cause is not None)
        failed = {f"{_FAILED}{cause}": count for cause, count in causes.items()}
        return publication.finish(samples, {"rows": rows, **failed, **others})


def _most_common(found: Counter[str]) -> dict[str, int]:
    """The kinds of which there are most, and how many members are of any other."""
    shown = dict(found.most_common(_SHOWN))
    rest = found.total() - sum(shown.values())
    return {**shown, _REST: shown.get(_REST, 0) + rest} if rest else shown


@dataclass(frozen=True)
class _Found:
    """Of one tar: the index of its samples, a row for each with what was wrong with it, and what else is there."""

    index: pa.Table
    ledger: pa.Table
    others: Counter[str]


def _read(view: memoryview, tar: Tar, settings: AdoptSettings) -> _Found:
    extensions = Extensions(settings.images_end, settings.captions_end)
    samples, others = samples_of(tar_members(view), extensions)
    prefix = f"{tar.stem}/" if settings.keys_of_tars else ""
    rows: list[tuple[Any, ...]] = []
    ledger: list[tuple[str | None, ...]] = []
    for row in rows_of(samples.values(), view, extensions, captioned=settings.captions):
        if isinstance(row, Row):
            parts = [(part.offset, part.size) if part else (0, -1) for part in (row.image, row.text, row.json)]
            key = prefix + row.key
            rows.append((key, *(number for part in parts for number in part), row.caption, row.label))
            ledger.append((key, "success", None, None))
        else:
            sample, refusal = row
            ledger.append((prefix + sample.key, "refused", refusal.cause, refusal.message))
    return _Found(_table(rows, ADOPTED_SCHEMA), _table(ledger, _LEDGER), others)


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema)


def work_of_tars(tars: Sequence[Tar]) -> Work:
    """How much it is to read all of these."""
    size = sum(tar.bytes for tar in tars)
    return Work(f"tars of {size / 1e9:,.1f} GB", size / _BYTES_A_SECOND)


def adopt(settings: AdoptSettings, tars: Sequence[Tar], executor: Executor) -> Adopted:
    """Make the dataset `settings.out` of these tars, which `find_tars` found, or go on with it.

    Raises `UserError` for a first tar without any sample that can be used (with the names that were found), keys that
    two tars have, and an `out` with other things in it; `IncompleteError` where a tar is damaged: the message names it.
    """
    folder = Folder(settings.out)
    name = check_dataset_name(settings.name or folder.url.rstrip("/").rpartition("/")[2].lower())
    refuse_other_things(folder, "a dataset", {DATASET, "_records", "_failures"})
    _refuse_ingested(folder)
    with folder.alone():
        if not published_records(folder):
            executor.once(_refuse_unfitting, tars[0], settings)
        summary = run_shards(AdoptTask(settings, tuple(tars)), executor)
        shards = [record for shard, record in compact(folder).items() if shard < len(tars)]
        _refuse_doubles(folder, tars, shards)
        withdraw_from(folder, len(tars))
        rows = int(summary.stats["rows"])
        stage = Stage(
            name=name,
            captioned=settings.captions,
            shards=len(tars),
            rows=rows,
            adopted=tuple(settings.patterns),
            command=("clipstill", "shards", "adopt", *words_of(replace(settings, name=name), without={"out"})),
        )
        publish_whole(folder, stage)
    return Adopted(summary, len(tars), rows, _counted(summary, _FAILED), _counted(summary, _OTHER))


def _counted(summary: Summary, prefix: str) -> Counter[str]:
    """The numbers of a kind that the records add up to."""
    found = {name.removeprefix(prefix): int(n) for name, n in summary.stats.items() if name.startswith(prefix)}
    return Counter(found)


def _refuse_ingested(folder: Folder) -> None:
    if folder.exists(DATASET) and not DatasetPlan.read(folder).stages[0].adopted:
        raise UserError("there is a dataset of another origin", where=str(folder), do="Give another --out")


def _refuse_unfitting(tar: Tar, settings: AdoptSettings) -> None:
    """Before thousands of tars are read: whether the first of them has what is looked for."""
    with tar.mapped() as view:
        try:
            found = _read(view, tar, settings)
            kinds = Counter(f".{kind_of(member.name)}" for member in tar_members(view))
        except TarError as error:
            raise UserError(str(error), where=tar.url, do="See that it is a whole tar, not compressed") from None
    if len(found.index):
        return
    what = "an image and a caption" if settings.captions else "an image"
    names = ", ".join(kind for kind, _ in kinds.most_common(_SHOWN))
    faults = Counter(found.ledger["error_message"].to_pylist()).most_common(1)
    seen = f"; found {names}" if names else "" if faults else "; it has no files"
    seen += f"; of {len(found.ledger):,}, {faults[0][1]:,}: {faults[0][0]}" if faults else ""
    raise UserError(
        f"0 of {len(found.ledger):,} samples have {what} (.{', .'.join(settings.images_end)}"
        + (f" and .{', .'.join(settings.captions_end)}" if settings.captions else "")
        + f"){seen}",
        where=tar.url,
        do=_advice(kinds, settings),
    )


def _advice(seen: Counter[str], settings: AdoptSettings) -> str:
    kinds = [name.removeprefix(".") for name, _ in seen.most_common()]
    image = next((kind for kind in kinds if kind.rpartition(".")[2] in IMAGES), None)
    caption = next((kind for kind in kinds if kind.rpartition(".")[2] in CAPTIONS), None)
    options = [f"--image {image}"] if image and image not in settings.images_end else []
    if settings.captions:
        options.append(f"--caption {caption}" if caption else "--no-captions")
    return f"Use {' '.join(options)}, or say which members they are with --image and --caption"


def _refuse_doubles(folder: Folder, tars: Sequence[Tar], records: list[ShardRecord]) -> None:
    """A key in two tars would be two samples of one name; within a tar there is none."""
    digests, owners = [], []
    for record in records:
        keys = Shard(folder, record).keys
        digests.append(np.fromiter(map(_digest, keys), np.uint64, len(keys)))
        owners.append(np.full(len(keys), record.shard, np.int32))
    every = np.concatenate(digests) if digests else np.empty(0, np.uint64)
    order = np.argsort(every, kind="stable")
    twice = np.flatnonzero(every[order][1:] == every[order][:-1])
    where = np.concatenate(owners)[order] if digests else np.empty(0, np.int32)
    for place in twice:
        first, second = int(where[place]), int(where[place + 1])
        shared = set(Shard(folder, records[first]).keys) & set(Shard(folder, records[second]).keys)
        if first != second and shared:
            raise UserError(
                f"the key {min(shared)!r} is in {tars[first].url} too ({len(shared):,} keys are in both)",
                where=tars[second].url,
                do="Use --keys-of-tars, so that keys begin with their tar's name",
            )


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
