"""What a dataset says of itself: which shards it is to have, of which rows. Read and written here alone.

dataset.json       the first stage: of the list that was ingested, or of the samples that a script wrote
_rounds/NNN.json   further stages: rows that the list has grown by, or that `clipstill ingest retry` fetches again
planning.json      the stage that is not whole yet, as far as it is known
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from shards.errors import UserError
from shards.places import what_is_at, which_command
from shards.record import RecordName, is_made
from shards.storage import Folder
from shards.typed_json import parsed

DATASET = "dataset.json"
PLANNING = "planning.json"
ROUNDS = "_rounds"
SCHEMA_VERSION = 1

_MOST_SHARDS = 1 << 22
"""That a stage may name: of more it is the number that is damaged, and a list of them would fill the memory."""
_MOST_ROWS = 1 << 24
"""Of a shard, likewise."""
_Count = Annotated[int, Field(ge=0)]
_Shards = Annotated[int, Field(ge=0, le=_MOST_SHARDS)]
_AS_WRITTEN = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class InputFile:
    """A file of a list. `bytes` and `modified` are None where the store does not say, `sha256` until it is known."""

    __pydantic_config__ = _AS_WRITTEN

    name: str
    bytes: _Count | None = None
    modified: float | str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class PlanPart:
    """A file of planned rows, those of `shards` neighbouring shards."""

    __pydantic_config__ = _AS_WRITTEN

    name: str
    bytes: _Count
    sha256: str
    shards: _Shards
    rows: _Count


@dataclass(frozen=True)
class Stage:
    """Neighbouring shards that were planned together.

    Attributes:
        settings: what `clipstill ingest` was asked for; None for a dataset that was written without a list.
        inputs: all files of the list, as they were when the stage was planned.
        captioned: whether samples have captions.
        fingerprint: what each shard's record must have; "" where any will do.
        round: the number of the round that this is, None of the first stage.
        first: its first shard.
        row: the input row that it begins with; None of a retry, whose rows are those of stages before it.
        shards, rows: how many it has.
        parts: where its planned rows are.
        witnesses: of a retry, URLs that answered before.
        allowed: of a retry, the addresses that were allowed.
        adopted: of a dataset of somebody else's tars, the patterns that name them.
        command: the words of the command that makes it again, without the dataset's own folder; empty of a dataset that
            a script wrote.
        made_of: of a dataset made of datasets, how (`select`, `split`, `materialize`), and what decided its samples.
        whole: whether all of it is planned.
    """

    settings: Mapping[str, Any] | None = None
    inputs: tuple[InputFile, ...] = ()
    name: str = ""
    captioned: bool = True
    fingerprint: str = ""
    round: str | None = None
    first: _Shards = 0
    row: _Count | None = 0
    shards: _Shards = 0
    rows: _Count = 0
    parts: tuple[PlanPart, ...] = ()
    witnesses: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    adopted: tuple[str, ...] = ()
    made_of: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    whole: bool = True

    @property
    def is_retry(self) -> bool:
        return self.row is None

    @property
    def numbers(self) -> range:
        """Its shards."""
        return range(self.first, self.first + self.shards)


_IN_DATASET = {"schema", "settings", "command", "inputs", "name", "captioned", "fingerprint", "shards", "rows", "parts"}
_IN_WRITTEN = {"schema", "name", "captioned", "shards", "rows"}
_IN_PLANNING = _IN_DATASET | {"round", "first", "row"}
_IN_GROWN = _IN_PLANNING - {"schema", "settings", "name", "round"}
_IN_RETRY = _IN_GROWN - {"inputs", "row"} | {"witnesses", "allowed"}
_NAMES = {field.name for field in fields(Stage)} - {"whole"}


@dataclass(frozen=True)
class DatasetPlan:
    """All stages of the dataset in a folder, in order; the last one may not be whole."""

    folder: Folder
    stages: tuple[Stage, ...]

    @staticmethod
    def read(folder: Folder, *, unfinished: bool = False) -> DatasetPlan:
        """The plan of the dataset here; with `unfinished` also where the first stage is not whole.

        Raises `UserError` if there is none, or one that is damaged or of another version.
        """
        planning = _read(folder, PLANNING)
        first = _read(folder, DATASET)
        if first is None:
            if planning is None:
                raise UserError(
                    f"no dataset here (there is no {DATASET}): this is {what_is_at(folder)}",
                    where=str(folder),
                    do=which_command(folder),
                )
            plan = DatasetPlan(folder, (replace(planning, whole=False),))
            if not unfinished:
                plan.refuse_unfinished()
            return plan
        rounds = folder.child(ROUNDS)
        stages = [first]
        for name in rounds.names():
            if name.endswith(".json"):
                found = _read(folder, f"{ROUNDS}/{name}")
                assert found is not None
                stages.append(replace(found, round=name.removesuffix(".json")))
        if planning is not None and planning.round not in {stage.round for stage in stages}:
            stages.append(replace(planning, whole=False))
        return DatasetPlan(folder, tuple(stages))

    def refuse_unfinished(self) -> None:
        """Raise `UserError` if the last stage is not whole."""
        last = self.stages[-1]
        if last.whole:
            return
        if last.made_of:
            problem = f"this `clipstill shards {last.made_of[0]}` did not come to an end"
            do = "Run the same command again; it goes on where it stopped"
        elif last.settings is None:
            problem, do = "whoever was writing a dataset here did not come to an end", "Write it again, all of it"
        else:
            problem = f"this dataset is still being ingested: {last.rows:,} rows of its list are planned so far"
            do = "Run the same `clipstill ingest` command again; it goes on where it stopped"
        raise UserError(problem, where=str(self.folder), do=do)

    @property
    def name(self) -> str:
        return self.stages[0].name

    @property
    def captioned(self) -> bool:
        return self.stages[0].captioned

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `clipstill ingest` was asked for. Raises `UserError` for a dataset that it did not make."""
        settings = self.stages[0].settings
        if settings is None:
            raise UserError(
                "this dataset was not made from a plan",
                where=str(self.folder),
                do="Give what `clipstill ingest` wrote",
            )
        return settings

    @property
    def lists(self) -> list[Stage]:
        """The stages whose rows are the input's: of the first list, and what it has grown by."""
        return [stage for stage in self.stages if not stage.is_retry]

    @property
    def retries(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.is_retry]

    @property
    def rows(self) -> int:
        """The rows of the input."""
        return sum(stage.rows for stage in self.lists)

    @cached_property
    def wanted(self) -> dict[int, str]:
        """Every shard that the dataset is to have → the fingerprint that its record must have, "" for any; in order."""
        return {shard: stage.fingerprint for stage in self.stages for shard in stage.numbers}

    def missing(self, names: Mapping[int, RecordName]) -> list[int]:
        """The shards that are not among the records of these `names`, or only as an earlier plan left them."""
        return [shard for shard, fingerprint in self.wanted.items() if not is_made(names, shard, fingerprint)]

    def stage_of(self, shard: int) -> Stage:
        """What plans a shard."""
        return next(stage for stage in reversed(self.stages) if shard >= stage.first)


def read_lists(folder: Folder) -> list[Stage]:
    """As `DatasetPlan.lists`, whole or not; empty if nothing is planned here."""
    there = folder.exists(PLANNING) or folder.exists(DATASET)
    return DatasetPlan.read(folder, unfinished=True).lists if there else []


def publish_planning(folder: Folder, stage: Stage) -> None:
    """Publish a stage that is not whole, as it now is."""
    folder.publish(PLANNING, _text(stage, _IN_PLANNING | ({"made_of"} if stage.made_of else set())))


def publish_whole(folder: Folder, stage: Stage) -> Stage:
    """Publish a stage that is whole, in the place that it keeps, and return it."""
    if stage.round is None:
        written = _IN_WRITTEN | {name for name in ("adopted", "made_of", "command") if getattr(stage, name)}
        folder.publish(DATASET, _text(stage, written if stage.settings is None else _IN_DATASET))
    else:
        text = _text(stage, _IN_RETRY if stage.is_retry else _IN_GROWN)
        folder.child(ROUNDS).publish(f"{stage.round}.json", text)
    if not stage.is_retry:
        folder.delete(PLANNING)
    return replace(stage, whole=True)


def remove_remains(folder: Folder) -> None:
    """Remove a `planning.json` whose stage is whole, left by a kill between the two."""
    if folder.exists(PLANNING) and DatasetPlan.read(folder, unfinished=True).stages[-1].whole:
        folder.delete(PLANNING)


def _text(stage: Stage, names: Collection[str]) -> bytes:
    # Not `asdict`, which takes a second for the parts of two billion rows.
    values = {"schema": SCHEMA_VERSION, **vars(stage)}
    values |= {"inputs": [vars(file) for file in stage.inputs], "parts": [vars(part) for part in stage.parts]}
    return json.dumps({name: value for name, value in values.items() if name in names}, indent=1).encode()


def _read(folder: Folder, name: str) -> Stage | None:
    """The stage that a file describes, None if there is no such file."""
    if folder.is_local and not folder.path.is_dir():
        return None
    try:
        text = folder.read(name)
    except FileNotFoundError:
        return None
    is_round = name.startswith(ROUNDS)
    expected = {"first", "shards", "rows", "fingerprint"} if is_round else {"schema", "name", "shards", "rows"}
    try:
        facts: Any = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError("it is no object")  # noqa: TRY004 - of the file
        if facts.get("schema", SCHEMA_VERSION) != SCHEMA_VERSION:
            raise UserError(
                f"{name} has schema {facts['schema']}, this version reads {SCHEMA_VERSION}",
                where=str(folder),
            )
        if lacks := expected - facts.keys():
            raise ValueError(f"it has no {min(lacks)!r}")
        stage = parsed(Stage, text)
        if stage.rows > stage.shards * _MOST_ROWS:
            raise ValueError(f"{stage.rows} rows in {stage.shards} shards")
    except (ValueError, RecursionError) as error:
        do = "Restore it" if is_round else "Give the folder that `clipstill ingest` wrote"
        told = " ".join(str(error).split())
        raise UserError(f"{name} is damaged or not ours ({told})", where=str(folder), do=do) from None
    # A round without a row of its own fetches rows again.
    return replace(stage, row=None) if is_round and "row" not in facts else stage
