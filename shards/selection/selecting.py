"""Make a selection: a dataset whose samples lie in another one's tars. Nothing of them is copied.

    dataset → `facts.py`, a shard at a time → `judging.py`, all at once → `SelectTask`, a shard at a time: index of what
    is kept, ledger with reasons for what is not, record

Both passes over the shards run where shard work runs, and go on where they were stopped.

A selection's shards are the dataset's, in order, some of them perhaps empty. Each index says which rows of that shard
its own are, and so on down to what the images were packed in: a teacher cache of any of these is read as it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards import stores
from shards.choice import Work
from shards.conditions import Condition
from shards.dataset import DATASET, PLANNING, SCHEMA_VERSION, DatasetPlan, Stage, publish_planning, publish_whole
from shards.errors import UserError
from shards.executor import Executor, InProcess, threads_of
from shards.fingerprint import fingerprint
from shards.keys import check_dataset_name
from shards.places import refuse_other_things
from shards.publication import Publication, withdraw_from
from shards.ranges import open_file
from shards.reader import Dataset
from shards.record import ShardRecord, published_records, read_records
from shards.runner import run_shards
from shards.selection.columns import digests_of
from shards.selection.facts import Wanted, drawn, facts_of
from shards.selection.judging import Judging, judge
from shards.selection.keys import WantedKeys
from shards.selection.settings import FilterSettings, amount_of
from shards.shard import Shard
from shards.side_table import schema_of
from shards.sound import sound_records
from shards.spelled import absolute, words_of
from shards.storage import Folder
from shards.task import Spec

FACTS = "_facts"
"""In a selection that is being made: what was found out of samples."""
_SECONDS_A_SAMPLE, _BYTES_A_SECOND = 6e-5, 3e7
"""To read what a sample says of itself; and of photos that are hashed by what they look like, on one core."""
_LEFT_OUT = "left_out."
"""What the numbers of a record begin with that count samples left out, by reason."""


@dataclass(frozen=True)
class Selected:
    """What came of it: `samples` of `rows`; by reason, how many of the others. `url`: where the selection is."""

    url: str
    samples: int
    rows: int
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class SelectSpec(Spec):
    """One shard, and of each of its samples which reason leaves it out: int16, from 1 on, 0 for none."""

    of: Shard = field(kw_only=True, compare=False)
    codes: bytes = field(kw_only=True, compare=False)


class SelectTask:
    """Publish a selection's shards; `codes` (n,) are those of all samples."""

    name = "select"

    def __init__(self, dataset: Dataset, judging: Judging, folder: Folder, overlap: int) -> None:
        self._shards, self._codes, self._reasons = dataset.shards, judging.codes, tuple(judging.reasons)
        self._folder, self.overlap = folder, overlap

    def __getstate__(self) -> dict[str, Any]:
        # Workers get shards and codes one by one.
        return {**self.__dict__, "_shards": (), "_codes": None}

    def specs(self) -> Iterator[SelectSpec]:
        at = 0
        for place, shard in enumerate(self._shards):
            codes = self._codes[at : at + shard.count].tobytes()
            at += shard.count
            # With the tar's place and time, which its content says nothing of: one that was adopted again is another.
            tar = asdict(shard.tar_elsewhere())
            mark = fingerprint([SCHEMA_VERSION, "selection", shard.content, tar, self._reasons, codes.hex()])
            yield SelectSpec(place, self._folder, mark, of=shard, codes=codes)

    def open(self) -> SelectWorker:
        return SelectWorker(self._reasons)


class SelectWorker:
    """Publishes what is kept of one shard after the other."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self._reasons = reasons

    def close(self) -> None:
        pass

    def run(self, spec: SelectSpec) -> ShardRecord:
        shard, codes = spec.of, np.frombuffer(spec.codes, np.int16)
        rows = np.flatnonzero(codes == 0)
        publication = Publication(spec, parent=shard.content)
        publication.refer(".tar", shard.tar_elsewhere())
        index = shard.selected_index(rows)
        with publication.file(".index.arrow") as path, pa.ipc.new_file(str(path), index.schema) as sink:
            sink.write_table(index)
        told = [self._reasons[code - 1] if code else None for code in codes.tolist()]
        ledger = {
            "key": pa.array(shard.keys, pa.string()),
            "status": pa.array(["left_out" if reason else "success" for reason in told], pa.string()),
            "reason": pa.array(told, pa.string()),
        }
        with publication.beside(".parquet") as path:
            pq.write_table(pa.table(ledger), str(path), write_page_checksum=True)
        shard.release()
        counts = Counter(reason for reason in told if reason is not None)
        left_out = {f"{_LEFT_OUT}{name}": count for name, count in counts.items()}
        return publication.finish(len(rows), {"rows": shard.count, **left_out})


def select(settings: FilterSettings, executor: Executor | None = None) -> Selected:
    """Make the selection `settings.out`; one that is there already, by the same rules, stays as it is.

    Without an executor the work is done in this process. Raises `UserError` for a rule that cannot be put, one that
    leaves nothing, and an `out` with other things in it.
    """
    executor = executor or InProcess()
    dataset, unlike = Dataset.open(settings.shards), [Dataset.open(url) for url in settings.unlike]
    for text in settings.where:
        Condition.parse(text)
    named = WantedKeys.read(settings.keys) if settings.keys is not None else None
    marks = _marks(settings)
    rules = ("filter", *_rules(settings), *marks, *(other.content for other in unlike))
    folder = Folder(settings.out)
    found = folder.child(FACTS)
    if standing := _standing(folder, dataset, rules):
        found.remove()
        return standing
    wanted = _wanted(settings, marks)
    with folder.alone():
        try:
            facts = facts_of(dataset.shards, wanted, found.child("own"), executor)
            theirs = [
                facts_of(other.shards, Wanted(near=True), found.child(f"unlike-{number}"), executor)["near"]
                for number, other in enumerate(unlike)
            ]
        except UserError:
            # What was found out stays if there is any: an image may be mended, a disk be emptied.
            if not published_records(found.child("own")):
                found.remove()
            raise
        try:
            if named is not None:
                named.refuse_if_none(int((facts["code"] != 1).sum()), dataset)
            judging = judge(settings, wanted.rules, facts, dict(zip(settings.unlike, theirs, strict=True)))
        except UserError:
            found.remove()
            raise
        command = ["filter", *words_of(settings, without={"out"})]
        selected = _publish(folder, dataset, judging, executor, rules=rules, command=command)
        found.remove()
    return selected


def split(url: str, parts: Mapping[str, float], out: str, seed: int = 0) -> list[Selected]:
    """Deal a dataset's samples to selections OUT/NAME by their keys: a sample's part depends on nothing else.

    `parts`: name → share; together at most 1. Raises `UserError` as `select` does.
    """
    if not parts or min(parts.values()) <= 0 or sum(parts.values()) > 1 + 1e-9:
        told = ", ".join(f"{name}={share:g}" for name, share in parts.items())
        raise UserError(f"the parts are {told or 'none'}", where="--part", do="Give shares above 0, of 1 in all")
    dataset = Dataset.open(url)
    place = drawn(_digests(dataset), "split", seed).astype(np.float64) / 2.0**64
    command = ["split", absolute(url), *(word for name in parts for word in ("--part", f"{name}={parts[name]}"))]
    command += ["--seed", str(seed)] if seed else []
    made, start = [], 0.0
    for name, share in parts.items():
        folder, rules = Folder(out).child(name), ("split", f"{start:g} to {start + share:g}, seed {seed}")
        standing = _standing(folder, dataset, rules)
        if standing is None:
            judging = Judging(len(dataset))
            judging.leave_out("in another part", (place < start) | (place >= start + share))
            with folder.alone():
                standing = _publish(folder, dataset, judging, InProcess(), rules=rules, command=command)
        made.append(standing)
        start += share
    return made


def _digests(dataset: Dataset) -> npt.NDArray[np.uint64]:
    """(n,): a hash of each key."""
    parts = []
    for shard in dataset.shards:
        parts.append(digests_of(shard.keys))
        shard.release()
    return np.concatenate(parts)


def work_of_filter(settings: FilterSettings) -> Work:
    """How much it is to look at the samples of these datasets."""
    samples = size = 0
    for number, url in enumerate((settings.shards, *settings.unlike)):
        shards = Dataset.open(url).shards
        samples += sum(shard.count for shard in shards)
        hashed = number or settings.unlike or settings.unique == "near"
        size += sum(shard.record.file(".tar").bytes for shard in shards if shard.count and hashed)
    words = f"{samples:,} samples"
    return Work(words, samples * _SECONDS_A_SAMPLE + size / _BYTES_A_SECOND)


def _wanted(settings: FilterSettings, marks: tuple[str, ...]) -> Wanted:
    """What the rules have to know of each sample."""
    embeddings = settings.unique == "embeddings"
    return Wanted(
        tables=settings.tables,
        keys=settings.keys,
        where=settings.where,
        marks=marks,
        near=settings.unique == "near" or bool(settings.unlike),
        exact=settings.unique == "exact",
        number=amount_of(settings.best, "--best")[0] if settings.best is not None else None,
        group=amount_of(settings.per, "--per")[0] if settings.per is not None else None,
        nearest=embeddings,
        key=embeddings or settings.per is not None or settings.sample is not None,
    )


def _marks(settings: FilterSettings) -> tuple[str, ...]:
    """What is in the files that the rules read. Raises `UserError` for one that cannot be read."""
    marks = []
    for url in settings.tables:
        schema_of(url)
    for url in (*settings.tables, *([settings.keys] if settings.keys is not None else [])):
        try:
            with open_file(url) as file:
                marks.append(f"{url} of {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}")
        except Exception as error:
            if (known := stores.told(error)) is None:
                raise
            raise UserError(known[0], where=url, do=known[1]) from None
    return tuple(marks)


def _rules(settings: FilterSettings) -> list[str]:
    """What decides a selection, in words."""
    named = {
        "--table": settings.tables,
        "--keys": (settings.keys,),
        "--where": settings.where,
        "--unlike": settings.unlike,
        "--unique": (settings.unique,),
        "--best": (settings.best,),
        "--per": (settings.per,),
        "--sample": (settings.sample,),
    }
    said = [f"{flag} {value}" for flag, values in named.items() for value in values if value is not None]
    return [*said, f"--seed {settings.seed}"]


def _standing(folder: Folder, dataset: Dataset, rules: tuple[str, ...]) -> Selected | None:
    """The selection of this dataset by these rules that is in the folder already.

    Raises `UserError` if the folder holds anything else.
    """
    refuse_other_things(folder, "a dataset", {DATASET, PLANNING, FACTS})
    if not folder.exists(DATASET):
        return None
    plan = DatasetPlan.read(folder)
    stage = plan.stages[0]
    if stage.made_of != (*rules, dataset.folder.url, dataset.content):
        if stage.made_of[:-1] == (*rules, dataset.folder.url):
            raise UserError(
                f"this selection was made of {dataset.folder} as it was before it changed",
                where=str(folder),
                do="Give another --out, or remove this one",
            )
        held = f"a dataset made by {' '.join(stage.made_of[:-1])}" if stage.made_of else "a dataset of another origin"
        raise UserError(f"there is {held}", where=str(folder), do="Give another --out")
    names = sound_records(folder)
    if plan.missing(names):
        return None
    records = read_records(folder, names.values()).values()
    reasons = Counter[str]()
    for record in records:
        found = {name: count for name, count in record.stats.items() if name.startswith(_LEFT_OUT)}
        reasons.update({name.removeprefix(_LEFT_OUT): int(count) for name, count in found.items()})
    return Selected(folder.url, sum(record.count for record in records), stage.rows, reasons)


def _publish(
    folder: Folder,
    dataset: Dataset,
    judging: Judging,
    executor: Executor,
    *,
    rules: tuple[str, ...],
    command: list[str],
) -> Selected:
    name = check_dataset_name(folder.url.rstrip("/").rpartition("/")[2].lower())
    kept = len(judging.kept())
    if not kept:
        raise UserError(f"nothing is left of {len(dataset):,} samples", where=str(dataset.folder))
    stage = Stage(
        name=name,
        captioned=dataset.captioned,
        shards=len(dataset.shards),
        rows=len(dataset),
        made_of=(*rules, dataset.folder.url, dataset.content),
        command=("clipstill", "shards", *command),
        whole=False,
    )
    publish_planning(folder, stage)
    withdraw_from(folder, len(dataset.shards))
    run_shards(SelectTask(dataset, judging, folder, threads_of(executor)), executor)
    publish_whole(folder, stage)
    return Selected(folder.url, kept, len(dataset), judging.reasons)
