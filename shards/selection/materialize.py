"""Write datasets anew: the samples of one or several, one after the other, in shards of one size.

So a selection becomes tars of its own, shards are cut otherwise, and several datasets become one. Images, captions and
metadata are copied as they are, byte for byte; nothing is decoded.

    datasets → `MaterializeTask.specs`: a range of their samples for each shard → tar, index, ledger, record
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pictures.kind import kind_of
from shards.choice import Work
from shards.dataset import DATASET, SCHEMA_VERSION, DatasetPlan, Stage, publish_whole
from shards.errors import ShardError, UserError
from shards.executor import Executor
from shards.fingerprint import fingerprint
from shards.keys import check_dataset_name, is_key
from shards.places import refuse_other_things
from shards.publication import Publication, withdraw_from
from shards.reader import Dataset
from shards.record import RECORDS, ShardRecord, compact
from shards.runner import Summary, run_shards
from shards.selection.columns import digests_of
from shards.shard import Shard
from shards.spelled import absolute
from shards.storage import Folder
from shards.task import Spec

_BYTES_A_SECOND = 2e8
"""Of photos, read and written on one core."""
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WebP": "webp"}


@dataclass(frozen=True)
class RangeSpec(Spec):
    """The samples from `start` to `stop`, counted through all datasets."""

    start: int = field(kw_only=True)
    stop: int = field(kw_only=True)


@dataclass(frozen=True)
class MaterializeTask:
    """Copy the samples of datasets into shards of `shard_size`; `named`: keys begin with their dataset's name."""

    urls: tuple[str, ...]
    contents: tuple[str, ...]
    samples: int
    out: str
    shard_size: int
    named: bool

    name = "materialize"
    overlap = 1

    def specs(self) -> Iterator[RangeSpec]:
        for shard, start in enumerate(range(0, self.samples, self.shard_size)):
            stop = min(start + self.shard_size, self.samples)
            mark = fingerprint([SCHEMA_VERSION, "materialize", self.contents, self.named, start, stop])
            yield RangeSpec(shard, Folder(self.out), mark, start=start, stop=stop)

    def open(self) -> MaterializeWorker:
        return MaterializeWorker(self)


class MaterializeWorker:
    """Writes one shard after the other."""

    def __init__(self, task: MaterializeTask) -> None:
        self._datasets = [Dataset.open(url) for url in task.urls]
        self._shards = [(dataset, shard) for dataset in self._datasets for shard in dataset.shards]
        self._starts = np.concatenate([[0], np.cumsum([shard.count for _, shard in self._shards])])
        self._named = task.named

    def close(self) -> None:
        pass

    def run(self, spec: RangeSpec) -> ShardRecord:
        publication = Publication(spec)
        keys: list[str] = []
        with publication.samples() as tar:
            place = int(np.searchsorted(self._starts, spec.start, side="right")) - 1
            at = spec.start
            while at < spec.stop:
                dataset, shard = self._shards[place]
                first, last = at - int(self._starts[place]), min(spec.stop - int(self._starts[place]), shard.count)
                for row in range(first, last):
                    key = new_key(dataset, shard.keys[row], named=self._named)
                    image = shard.image_bytes(row)
                    tar.add(
                        key, image, _extension(shard, row, image), shard.caption(row), shard.meta(row) | {"key": key}
                    )
                    keys.append(key)
                at, place = int(self._starts[place]) + last, place + 1
                shard.release()
        with publication.beside(".parquet") as path:
            ledger = {"key": pa.array(keys, pa.string()), "status": pa.array(["success"] * len(keys), pa.string())}
            pq.write_table(pa.table(ledger), str(path), write_page_checksum=True)
        return publication.finish(len(keys), {"rows": len(keys)})


def new_key(dataset: Dataset, key: str, *, named: bool) -> str:
    """A sample's key in a tar of ours, which has no folders."""
    found = key.replace("/", "_").replace(".", "_")
    return f"{dataset.name}-{found}" if named else found


def materialize(
    urls: Sequence[str], out: str, executor: Executor, *, shard_size: int = 1000, name: str = "", named: bool = False
) -> Summary:
    """Write the samples of these datasets, in their order, as the dataset `out`; goes on where it was stopped.

    Raises `UserError` for keys that two samples would have, or that no tar of ours can, and for an `out` with other
    things in it.
    """
    if shard_size < 1:
        raise UserError(f"{shard_size} samples a shard", where="--shard-size", do="Ask for 1 at least")
    folder = Folder(out)
    refuse_other_things(folder, "a dataset", {DATASET, RECORDS, "_failures"})
    datasets = [Dataset.open(url) for url in urls]
    if folder.url in {dataset.folder.url for dataset in datasets}:
        raise UserError("a dataset cannot be written over itself", where=out, do="Give another --out")
    contents = tuple(dataset.content for dataset in datasets)
    own = check_dataset_name(name or folder.url.rstrip("/").rpartition("/")[2].lower())
    samples = sum(map(len, datasets))
    count = -(-samples // shard_size)
    made_of = (
        "materialize",
        f"{shard_size} a shard{', named' * named}",
        *(dataset.folder.url for dataset in datasets),
        *contents,
    )
    stage = Stage(
        name=own,
        captioned=any(dataset.captioned for dataset in datasets),
        shards=count,
        rows=samples,
        made_of=made_of,
        command=(
            *("clipstill", "shards", "materialize", *map(absolute, urls)),
            *("--shard-size", str(shard_size), "--name", own, *(["--name-keys"] if named else [])),
        ),
    )
    if folder.exists(DATASET) and DatasetPlan.read(folder).stages[0].made_of != made_of:
        raise UserError("there is a dataset of another origin", where=str(folder), do="Give another --out")
    _refuse_bad_keys(datasets, named=named)
    task = MaterializeTask(
        tuple(dataset.folder.url for dataset in datasets), contents, samples, folder.url, shard_size, named
    )
    with folder.alone():
        summary = run_shards(task, executor)
        withdraw_from(folder, count)
        compact(folder)
        publish_whole(folder, stage)
    return summary


def work_of_materializing(urls: Sequence[str]) -> Work:
    """How much it is to copy these datasets."""
    datasets = [Dataset.open(url) for url in urls]
    size = sum(shard.record.file(".tar").bytes * (shard.count > 0) for dataset in datasets for shard in dataset.shards)
    return Work(f"tars of {size / 1e9:,.1f} GB", size / _BYTES_A_SECOND)


def _refuse_bad_keys(datasets: Sequence[Dataset], *, named: bool) -> None:
    digests, owners = [], []
    for number, dataset in enumerate(datasets):
        for shard in dataset.shards:
            keys = [new_key(dataset, key, named=named) for key in shard.keys]
            bad = next((key for key in keys if not is_key(key)), None)
            if bad is not None:
                raise UserError(
                    f"the key {bad!r} cannot be a tar member's name: 1 to 90 ASCII letters, digits, '-' or '_' can",
                    where=f"{dataset.folder}/{shard.id:05d}",
                )
            digests.append(digests_of(keys))
            owners.append(np.full(len(keys), number))
            shard.release()
    every, owner = np.concatenate(digests), np.concatenate(owners)
    order = np.argsort(every, kind="stable")
    twice = np.flatnonzero(every[order][1:] == every[order][:-1])
    if len(twice):
        one, other = (datasets[int(owner[order[twice[0] + step]])] for step in (0, 1))
        key = _key_at(datasets, int(order[twice[0]]), named=named)
        raise UserError(
            f"the key {key!r} is a sample's of {one.folder} and of {other.folder} ({len(twice):,} such keys)",
            do="" if named else "Use --name-keys, so that keys begin with their dataset's name",
        )


def _key_at(datasets: Sequence[Dataset], place: int, *, named: bool) -> str:
    for dataset in datasets:
        for shard in dataset.shards:
            if place < shard.count:
                return new_key(dataset, shard.keys[place], named=named)
            place -= shard.count
    raise IndexError(place)


def _extension(shard: Shard, row: int, image: bytes) -> str:
    kind = kind_of(image)
    if kind not in _EXTENSIONS:
        raise ShardError(f"the image of {shard.keys[row]} is {kind}, not JPEG, PNG or WebP", shard.keys[row])
    return _EXTENSIONS[kind]
