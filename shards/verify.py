"""Prove a dataset: every byte hashed, every tar read member by member, every row accounted for."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from shards.check import CheckTask, Found
from shards.choice import Work
from shards.dataset import DatasetPlan
from shards.executor import Executor, InProcess, Outcome, threads_of
from shards.keys import sample_key, sample_row
from shards.mapping import map_shards
from shards.progress import Meter
from shards.record import RECORDS, ShardRecord, published_records, read_records
from shards.storage import Folder

_HASHED, _DECODED = 5e8, 2e7
"""Bytes a second of tars of photos that a core hashes and reads, and of photos that it decodes."""


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


def work_of_verifying(url: str, *, decode: bool = True) -> Work:
    """How much it is to check the dataset at `url`. Raises `UserError` if there is none."""
    folder = Folder(url)
    DatasetPlan.read(folder)
    records = read_records(folder).values()
    size = sum(file.bytes for record in records if record.count for file in record.files)
    return Work(f"shards of {size / 1e9:,.1f} GB", size / (_DECODED if decode else _HASHED))


def verify_dataset(url: str, executor: Executor | None = None, *, decode: bool = True) -> Report:
    """Check the dataset at `url` against its records; reads every byte and, unless told otherwise, decodes every image.

    Without an executor the work is done in this process.

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
    executor = executor or InProcess()
    task = CheckTask(folder, tuple(records.values()), threads_of(executor), decode=decode)
    with Meter(task.name, len(records), unit="shards") as meter:
        for outcome in map_shards(task, executor):
            record, found = records[outcome.spec.shard], _found(outcome)
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

    def check(self, record: ShardRecord, found: Found) -> list[str]:
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

    def _check_planned(self, found: Found, told: float | None) -> list[str]:
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
    if not plan.stages[0].command:
        return f"restore the files from where they came: {folder} does not say which command made it"
    records = [f"{shlex.quote(f'{folder}/{RECORDS}')}/{shard:05d}.*" for shard in sorted(damaged)]
    # The dataset that a selection was made of, and its content, come last. Its tars are that one's to mend, before.
    steps = [shlex.join(["clipstill", "shards", "verify", made_of[-2]])] if lost_tars and made_of else []
    steps += [f"rm {' '.join(records)}"] if records and folder.is_local else []
    stages = {plan.stage_of(shard).round for shard in unmade | damaged if shard <= max(plan.wanted)}
    hit = [stage for stage in plan.stages if stage.round in stages]
    if any(not stage.is_retry for stage in hit):
        out = folder.url.rpartition("/")[0] if made_of[:1] == ("split",) else folder.url
        steps.append(shlex.join([*plan.lists[-1].command, "--out", out]))
    if hit and hit[-1].is_retry:
        steps.append(shlex.join([*hit[-1].command[:3], folder.url, *hit[-1].command[3:]]))
    before = "" if folder.is_local or not records else f"delete {' '.join(records)}, then: "
    return before + " && ".join(steps)


def _found(outcome: Outcome) -> Found:
    if outcome.result is None:
        return Found(None, [], [f"cannot be checked ({outcome.cause})"], [])
    found: Found = outcome.result
    return found
