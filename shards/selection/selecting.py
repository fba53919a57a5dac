"""Make a selection: a dataset whose samples lie in another one's tars. Nothing of them is copied.

    dataset → `judging.py` → for each shard: index of what is kept, ledger with reasons for what is not, record

A selection's shards are the dataset's, in order, some of them perhaps empty. Each index says which rows of that shard
its own are, and so on down to what the images were packed in: a teacher cache of any of these is read as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.dataset import DATASET, PLANNING, SCHEMA_VERSION, DatasetPlan, Stage, publish_planning, publish_whole
from shards.errors import UserError
from shards.fingerprint import fingerprint
from shards.keys import check_dataset_name
from shards.places import refuse_other_things
from shards.publication import Publication, withdraw_from
from shards.reader import Dataset
from shards.record import compact, published_records, read_records
from shards.selection.judging import Judging
from shards.selection.settings import FilterSettings
from shards.shard import Shard
from shards.side_table import SideTable
from shards.spelled import absolute, words_of
from shards.storage import Folder
from shards.task import Spec

_LEFT_OUT = "left_out."
"""What the numbers of a record begin with that count samples left out, by reason."""


@dataclass(frozen=True)
class Selected:
    """What came of it: `samples` of `rows`; by reason, how many of the others. `url`: where the selection is."""

    url: str
    samples: int
    rows: int
    reasons: Mapping[str, int]


def select(settings: FilterSettings) -> Selected:
    """Make the selection `settings.out`; one that is there already, by the same rules, stays as it is.

    Raises `UserError` for a rule that cannot be put, one that leaves nothing, and an `out` with other things in it.
    """
    dataset = Dataset.open(settings.shards)
    rules = ("filter", *_rules(settings))
    folder = Folder(settings.out)
    if standing := _standing(folder, dataset, rules):
        return standing
    judging = Judging(dataset, [SideTable.read(url) for url in settings.tables])
    judging.apply(settings)
    return _publish(folder, judging, rules, ["filter", *words_of(settings, without={"out"})])


def split(url: str, parts: Mapping[str, float], out: str, seed: int = 0) -> list[Selected]:
    """Deal a dataset's samples to selections OUT/NAME by their keys: a sample's part depends on nothing else.

    `parts`: name → share; together at most 1. Raises `UserError` as `select` does.
    """
    if not parts or min(parts.values()) <= 0 or sum(parts.values()) > 1 + 1e-9:
        told = ", ".join(f"{name}={share:g}" for name, share in parts.items())
        raise UserError(f"the parts are {told or 'none'}", where="--part", do="Give shares above 0, of 1 in all")
    dataset = Dataset.open(url)
    place = Judging(dataset, ()).key_hashes(seed, "split").astype(np.float64) / 2.0**64
    command = ["split", absolute(url), *(word for name in parts for word in ("--part", f"{name}={parts[name]}"))]
    command += ["--seed", str(seed)] if seed else []
    made, start = [], 0.0
    for name, share in parts.items():
        folder, rules = Folder(out).child(name), ("split", f"{start:g} to {start + share:g}, seed {seed}")
        standing = _standing(folder, dataset, rules)
        if standing is None:
            judging = Judging(dataset, ())
            judging.keep_only((start <= place) & (place < start + share), "in another part")
            standing = _publish(folder, judging, rules, command)
        made.append(standing)
        start += share
    return made


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
    refuse_other_things(folder, "a dataset", {DATASET, PLANNING})
    if not folder.exists(DATASET):
        return None
    plan = DatasetPlan.read(folder)
    stage = plan.stages[0]
    if stage.made_of != (*rules, dataset.folder.url, dataset.content):
        held = f"a dataset made by {' '.join(stage.made_of[:-1])}" if stage.made_of else "a dataset of another origin"
        raise UserError(f"there is {held}", where=str(folder), do="Give another --out")
    names = published_records(folder)
    if plan.missing(names):
        return None
    records = read_records(folder, names.values()).values()
    reasons = Counter[str]()
    for record in records:
        found = {name: count for name, count in record.stats.items() if name.startswith(_LEFT_OUT)}
        reasons.update({name.removeprefix(_LEFT_OUT): int(count) for name, count in found.items()})
    return Selected(folder.url, sum(record.count for record in records), stage.rows, reasons)


def _publish(folder: Folder, judging: Judging, rules: tuple[str, ...], command: Sequence[str]) -> Selected:
    dataset = judging.dataset
    name = check_dataset_name(folder.url.rstrip("/").rpartition("/")[2].lower())
    kept = int((judging.codes == 0).sum())
    if not kept:
        raise UserError(f"nothing is left of {len(dataset):,} samples", where=str(dataset.folder))
    with folder.alone():
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
        withdraw_from(folder, 0)
        reasons = list(judging.reasons)
        for place, shard in enumerate(dataset.shards):
            _write(folder, place, shard, judging.of(place), reasons)
            shard.release()
        compact(folder)
        publish_whole(folder, stage)
        folder.sweep()
    return Selected(folder.url, kept, len(dataset), judging.reasons)


def _write(folder: Folder, place: int, shard: Shard, codes: npt.NDArray[np.int16], reasons: Sequence[str]) -> None:
    """Publish what is kept of one shard."""
    rows = np.flatnonzero(codes == 0)
    mark = fingerprint([SCHEMA_VERSION, "selection", shard.content, rows.tolist()])
    publication = Publication(Spec(place, folder, mark), parent=shard.content)
    publication.refer(".tar", shard.tar_elsewhere())
    index = shard.selected_index(rows)
    with publication.file(".index.arrow") as path, pa.ipc.new_file(str(path), index.schema) as sink:
        sink.write_table(index)
    told = [reasons[code - 1] if code else None for code in codes.tolist()]
    ledger = {
        "key": pa.array(shard.keys, pa.string()),
        "status": pa.array(["left_out" if reason else "success" for reason in told], pa.string()),
        "reason": pa.array(told, pa.string()),
    }
    with publication.beside(".parquet") as path:
        pq.write_table(pa.table(ledger), str(path), write_page_checksum=True)
    counts = Counter(reason for reason in told if reason is not None)
    publication.finish(len(rows), {"rows": shard.count, **{f"{_LEFT_OUT}{name}": n for name, n in counts.items()}})
