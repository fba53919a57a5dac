"""What selections are made of, and what `stats` reads, is damaged or forged: refused by name, or read right."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from shards import Dataset, InProcess, UserError
from shards.executor import Outcome
from shards.near import first_copies, image_hash
from shards.selection import FilterSettings, select
from shards.verify import verify_dataset
from stats import figures_of, page_of
from teacher_cache.reader import TeacherCache
from tests.fuzz import material
from tests.fuzz.arrows import spoil
from tests.fuzz.jsons import damaged, read_all
from tests.fuzz.mutations import mutated
from tests.fuzz.parquets import spoiled, told

_WHERE = ("n >= 3", "n != 7")


def case(seed: int, folder: Path) -> str:
    chance = random.Random(seed)
    return chance.choice([_selection, _selection, _table, _keys, _facts, _stats])(chance, folder)


def _kept(number: int) -> bool:
    return number >= 3 and number != 7


def _selection(chance: random.Random, folder: Path) -> str:
    """Any file of it, forged ones too. What a cache of the whole has is what it has of these rows."""
    own = material.opened("own")
    place = folder / "some"
    select(FilterSettings(shards=own.folder.url, out=str(place), where=_WHERE))
    sound = material.everything(Dataset.open(str(place)))
    path = chance.choice(sorted(one for one in place.rglob("*") if one.is_file() and one.name != "manifest.jsonl"))
    (place / "_records" / "manifest.jsonl").unlink()
    forged = False
    if path.suffix == ".arrow":
        spoil(path, chance)
        if forged := chance.random() < 0.6:
            material.record_again(place, int(path.name[:5]), ".index.arrow")
    elif path.suffix == ".json":
        path.write_bytes(damaged(path.read_bytes(), chance))
    else:
        path.write_bytes(mutated(path.read_bytes(), chance))
    try:
        report = verify_dataset(str(place))
        dataset = Dataset.open(str(place))
        found = material.everything(dataset)
        cache = read_all(TeacherCache.open(str(material.copied("cache", folder)), dataset))
    except UserError as error:
        refusal = str(error)
        assert "\n" not in refusal
        # A forger who says where the tars are is told of these.
        assert path.name in refusal or str(place) in refusal or own.folder.url in refusal or ".tar" in refusal, refusal
        return refusal
    if forged or path.suffix == ".json":
        # What a forger says of rows that exist is believed, but only of these.
        assert all(len(values) == len(dataset) for values in cache.values())
        return "read"
    assert found == sound
    assert path.suffix != ".parquet" or any(path.name in problem for problem in report.problems) or not report.problems
    whole = read_all(TeacherCache.open(str(folder / "cache"), own))
    rows = [at for at, key in enumerate(key for shard in own.shards for key in shard.keys) if key in found]
    for name in (name for name in whole if not name.startswith("crop")):
        assert list(map(str, cache[name])) == [str(whole[name][row]) for row in rows]
    return "read"


def _table(chance: random.Random, folder: Path) -> str:
    own = material.opened("own")
    keys = [key for shard in own.shards for key in shard.keys]
    path = folder / "scores.parquet"
    path.write_bytes(spoiled({"key": keys, "score": [float(at) for at in range(len(keys))]}, chance))
    settings = FilterSettings(shards=own.folder.url, out=str(folder / "some"), tables=(str(path),), best="score=4")
    try:
        selected = select(settings)
    except UserError as error:
        refusal = str(error)
        assert path.name in refusal or "score" in refusal, refusal
        assert not (folder / "some").exists()
        return refusal
    scores = {row["key"]: row["score"] for row in told(path, ["key", "score"])}
    known = [key for key in keys if isinstance(scores.get(key), int | float | str) and scores[key] == scores[key]]
    best = sorted(known, key=lambda key: -float(scores[key]))[:4]
    kept = [key for shard in Dataset.open(selected.url).shards for key in shard.keys]
    assert sorted(kept) == sorted(best)
    return "read"


def _keys(chance: random.Random, folder: Path) -> str:
    own = material.opened("own")
    keys = [key for shard in own.shards for key in shard.keys]
    wanted = keys[::3]
    kind = chance.choice(["txt", "parquet", "npy"])
    path = folder / f"keys.{kind}"
    if kind == "txt":
        path.write_bytes(mutated("\n".join(wanted).encode(), chance))
    elif kind == "parquet":
        path.write_bytes(spoiled({"key": wanted, "more": list(range(len(wanted)))}, chance))
    else:
        sink = io.BytesIO()
        np.save(sink, np.zeros(3, "u8,u8"))
        path.write_bytes(mutated(sink.getvalue(), chance))
    try:
        selected = select(FilterSettings(shards=own.folder.url, out=str(folder / "some"), keys=str(path)))
    except UserError as error:
        refusal = str(error)
        # The dataset has no uids, which is said of it.
        assert path.name in refusal or (kind == "npy" and "uid" in refusal), refusal
        return refusal
    listed = path.read_text().split() if kind == "txt" else [row["key"] for row in told(path, ["key"])]
    kept = [key for shard in Dataset.open(selected.url).shards for key in shard.keys]
    assert kept == [key for key in keys if key in listed]
    return "read"


class _Stopped(InProcess):
    """Ctrl-C once all shards have been looked at."""

    left = 3

    def wait(self, most: float | None = None) -> Outcome | None:
        outcome = super().wait(most)
        self.left -= outcome is not None
        if not self.left:
            raise KeyboardInterrupt
        return outcome


def _facts(chance: random.Random, folder: Path) -> str:
    """What an interrupted run has found out."""
    own = material.opened("own")
    settings = FilterSettings(shards=own.folder.url, out=str(folder / "some"), where=_WHERE, unique="near")
    try:
        select(settings, _Stopped())
    except KeyboardInterrupt:
        path = chance.choice(sorted(one for one in (folder / "some").rglob("0*") if one.is_file()))
    if path.suffix == ".arrow":
        spoil(path, chance)
    else:
        path.write_bytes(damaged(path.read_bytes(), chance))
    try:
        selected = select(settings)
    except UserError as error:
        refusal = str(error)
        assert path.name in refusal or "_facts" in refusal, refusal
        return refusal
    rows = [(key, shard.image_bytes(row)) for shard in own.shards for row, key in enumerate(shard.keys)]
    left = [(key, image) for number, (key, image) in enumerate(rows) if _kept(number)]
    first = first_copies(np.array([image_hash(image) for _, image in left], np.uint64))
    kept = [key for shard in Dataset.open(selected.url).shards for key in shard.keys]
    assert kept == [key for at, (key, _) in enumerate(left) if first[at] == at]
    return "read"


def _stats(chance: random.Random, folder: Path) -> str:
    name = chance.choice(["own", "adopted", "packed"])
    place = material.copied(name, folder)
    path = chance.choice(sorted(one for one in place.glob("0*") if one.is_file() and one.suffix != ".tar"))
    before = path.read_bytes()
    if path.suffix == ".parquet" and chance.random() < 0.5:
        columns = {column: values.to_pylist() for column, values in _columns(path)}
        path.write_bytes(spoiled(columns, chance))
    else:
        path.write_bytes(mutated(before, chance))
    try:
        figures = figures_of([str(place)])
        page = page_of(figures)
    except UserError as error:
        refusal = str(error)
        assert path.name in refusal or str(place) in refusal, refusal
        assert "\n" not in refusal
        return refusal
    assert b"<html" in page[:200].lower()
    shutil.rmtree(place)
    return "read"


def _columns(path: Path) -> list[tuple[str, object]]:
    table = pq.read_table(path)
    return list(zip(table.column_names, table.columns, strict=True))
