"""What is found out of each sample before rules are put that look at all of them: one pass over a dataset's shards.

    shards → `FactsTask`: which samples the rules of a sample alone leave out; of the others hashes and values
    → NNNNN.arrow and a record each, in a folder that goes once the selection is there

So a pass that was stopped goes on, and an image is hashed only if no condition has left it out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pictures.refusal import RefusedError
from shards.arrow_files import read_arrow, refuse_other_columns
from shards.conditions import Condition
from shards.dataset import SCHEMA_VERSION
from shards.errors import UserError
from shards.executor import Executor, threads_of
from shards.fingerprint import fingerprint, seed64
from shards.near import image_hash
from shards.publication import Publication
from shards.record import ShardRecord, published_records, read_records
from shards.runner import run_shards
from shards.selection.columns import Columns, digests_of
from shards.selection.keys import WantedKeys
from shards.shard import Shard
from shards.side_table import SideTable
from shards.storage import Folder
from shards.task import Spec

Hashes = npt.NDArray[np.uint64]
_TYPES: dict[str, Any] = {
    **{"code": np.int16, "key": np.uint64, "nearest": np.uint64, "number": np.float64, "group": np.uint64},
    **{"near": np.uint64, "exact": np.uint64},
}


@dataclass(frozen=True)
class Wanted:
    """What is to be found out. `keys` and `where` are rules of a sample alone, put in this order; `marks` say what is
    in the files that are read.

    `code`: the number of the rule that leaves a sample out, from 1 on, 0 for none. Of what is left, 0 or NaN elsewhere:
    `near` and `exact`, hashes of the image; `number`, a column's values; `group`, hashes of a column's values. Of every
    sample `key`, a hash of its key, and `nearest`, one of the column `nearest_key`, 0 for none.
    """

    tables: tuple[str, ...] = ()
    keys: str | None = None
    where: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    near: bool = False
    exact: bool = False
    number: str | None = None
    group: str | None = None
    nearest: bool = False
    key: bool = False

    @property
    def rules(self) -> list[str]:
        """The rules in words; the first has the code 1."""
        return [*([f"not in {self.keys}"] if self.keys is not None else []), *self.where]

    @property
    def names(self) -> list[str]:
        """Of the facts."""
        return ["code", *(name for name in _TYPES if getattr(self, name, None))]


@dataclass(frozen=True)
class FactsSpec(Spec):
    """One shard."""

    of: Shard = field(kw_only=True, compare=False)


class FactsTask:
    """Find out what is wanted of each of these shards; what comes of it goes to `folder`."""

    name = "filter"

    def __init__(self, shards: Sequence[Shard], wanted: Wanted, folder: Folder, overlap: int) -> None:
        self._shards, self._wanted, self._folder, self.overlap = shards, wanted, folder, overlap

    def __getstate__(self) -> dict[str, Any]:
        # Workers get their shards one by one.
        return {**self.__dict__, "_shards": ()}

    def specs(self) -> Iterator[FactsSpec]:
        for place, shard in enumerate(self._shards):
            if shard.count:
                mark = fingerprint([SCHEMA_VERSION, "facts", shard.content, asdict(self._wanted)])
                yield FactsSpec(place, self._folder, mark, of=shard)

    def open(self) -> FactsWorker:
        return FactsWorker(self._wanted)


class FactsWorker:
    """Looks at one shard after the other."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._tables = [SideTable.read(url) for url in wanted.tables]
        self._rules: list[Callable[[Columns], npt.NDArray[np.bool_]]] = []
        if wanted.keys is not None:
            self._rules.append(WantedKeys.read(wanted.keys).hold)
        self._rules += [_rule(Condition.parse(text)) for text in wanted.where]

    def close(self) -> None:
        pass

    def run(self, spec: FactsSpec) -> ShardRecord:
        publication = Publication(spec, parent=spec.of.content)
        facts = pa.table(self._facts(Columns(spec.of, self._tables)))
        spec.of.release()
        with publication.file(".arrow") as path, pa.ipc.new_file(str(path), facts.schema) as sink:
            sink.write_table(facts)
        return publication.finish(len(facts), {})

    def _facts(self, columns: Columns) -> dict[str, npt.NDArray[Any]]:
        count = columns.shard.count
        code = np.zeros(count, np.int16)
        for number, rule in enumerate(self._rules, 1):
            if (code == 0).any():
                code[(code == 0) & ~rule(columns)] = number
        left = np.flatnonzero(code == 0)
        facts: dict[str, npt.NDArray[Any]] = {"code": code}
        for name in self._wanted.names[1:]:
            facts[name] = np.zeros(count, _TYPES[name])
            if name == "key":
                facts[name] = digests_of(columns.shard.keys)
            elif len(left):
                facts[name][left] = self._fact(name, columns, left)
        return facts

    def _fact(self, name: str, columns: Columns, left: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """One fact of the samples that are left."""
        if name == "near":
            return np.array([_near_hash(columns.shard, row) for row in left.tolist()], np.uint64)
        if name == "exact":
            found = (hashlib.blake2b(columns.shard.image_bytes(row), digest_size=8) for row in left.tolist())
            return np.array([int.from_bytes(digest.digest(), "big") for digest in found], np.uint64)
        if name == "number":
            return _numbers(columns, self._wanted.number or "")[left]
        if name == "group":
            return digests_of([repr(value) for value in columns[self._wanted.group or ""].take(left).to_pylist()])
        named = columns["nearest_key"].take(left).to_pylist()
        return np.where([key is None for key in named], np.uint64(0), digests_of([key or "" for key in named]))


def _rule(condition: Condition) -> Callable[[Columns], npt.NDArray[np.bool_]]:
    def met(columns: Columns) -> npt.NDArray[np.bool_]:
        values = pa.chunked_array([columns[condition.column]])
        return np.asarray(condition.met_by(values).combine_chunks().to_numpy(zero_copy_only=False), np.bool_)

    return met


def _numbers(columns: Columns, column: str) -> npt.NDArray[np.float64]:
    """(n,): a column as numbers, NaN where it has none."""
    try:
        return np.asarray(pc.fill_null(columns[column].cast(pa.float64()), np.nan))
    except pa.ArrowException as error:
        raise UserError(f"the column {column} holds no numbers ({error})", where="--best") from None


def _near_hash(shard: Shard, row: int) -> int:
    try:
        return image_hash(shard.image_bytes(row))
    except RefusedError as error:
        raise UserError(
            f"the image of {shard.keys[row]} does not decode ({error})",
            where=shard.tar,
            do="Run `clipstill shards verify`",
        ) from None


def facts_of(
    shards: Sequence[Shard], wanted: Wanted, folder: Folder, executor: Executor
) -> dict[str, npt.NDArray[Any]]:
    """Each fact of every sample of these shards, in their order; (n,) each, of the types that `Wanted` says.

    What was found out already, of the same shards by the same rules, lies in `folder`. Raises `UserError` for a rule
    that cannot be put, and an image that cannot be hashed.
    """
    run_shards(FactsTask(shards, wanted, folder, threads_of(executor)), executor)
    records = read_records(folder, published_records(folder).values())
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in wanted.names}
    schema = pa.schema([pa.field(name, pa.from_numpy_dtype(_TYPES[name])) for name in wanted.names])
    for place, shard in enumerate(shards):
        if shard.count:
            table = _read(folder, records[place], schema)
            for name, parts in found.items():
                parts.append(table[name].to_numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _read(folder: Folder, record: ShardRecord, schema: pa.Schema) -> pa.Table:
    entry = record.file(".arrow")
    data = folder.read(entry.name)
    try:
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ValueError("has another hash than its record says")
        table = read_arrow(data)
        refuse_other_columns(table, schema)
        if table.num_rows != record.count:
            raise ValueError(f"has {table.num_rows} rows, its record says {record.count}")
    except ValueError as error:
        raise UserError(f"{entry.name} {error}", where=str(folder), do="Delete this folder, and run it again") from None
    return table


def drawn(keys: Hashes, purpose: str, seed: int) -> Hashes:
    """(n,): a hash of each key, given by its own, for a purpose: the same whatever else there is."""
    return _mixed(keys ^ np.uint64(seed64(purpose, seed)))


def _mixed(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: neighbours in, strangers out."""
    with np.errstate(over="ignore"):
        z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
