"""JSON of a dataset or a cache is damaged or forged: it is refused by name, or what it says is what is read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from shards import Dataset, UserError
from shards.verify import verify_dataset
from teacher_cache.reader import TeacherCache
from tests.fuzz import material
from tests.fuzz.mutations import mutated

_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2.5,
    1 << 40,
    -(1 << 70),
    10**30,
    "",
    "x",
    "7",
    "../../up",
    "é\ud800",
]
_VALUES += [
    [],
    {},
    [[]],
    [1],
    {"a": 1},
    [{"name": 1}],
    "0" * 64,
    "9" * 5000,
    float("nan"),
    float("inf"),
    "a\nb\x1b[31m",
]
_TEXTS = [b"", b"null", b"[]", b"7", b"[" * 100_000, b'{"a":' * 50_000, b"1e999", b"9" * 6000, b"\xef\xbb\xbf{}", b"{}"]
_TEXTS += [b'"\\ud800"', b"\0" * 100, b'{"schema": 1, "schema": 2}']


def forged(value: Any, chance: random.Random) -> Any:
    """A value with one of the values in it changed, removed, named otherwise or given twice."""
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key, part in inner.items() if isinstance(inner, dict) else enumerate(inner):
            places.append((inner, key))
            if isinstance(part, dict | list):
                walk(part)

    if isinstance(value, dict | list):
        walk(value)
    if not places:
        return chance.choice(_VALUES)
    inner, key = chance.choice(places)
    how = chance.randrange(6)
    if how == 0:
        del inner[key]
    elif how == 1 and isinstance(inner, dict):
        inner[chance.choice(["x", key + "x", key[:-1], "at", "modified"])] = inner.pop(key)
    elif how == 2 and isinstance(inner, list):
        inner.append(inner[key])
    else:
        inner[key] = chance.choice(_VALUES)
    return value


def damaged(text: bytes, chance: random.Random) -> bytes:
    how = chance.randrange(10)
    if how == 0:
        return chance.choice(_TEXTS)
    if how < 4:
        return mutated(text, chance)
    value = json.loads(text)
    for _ in range(chance.choice([1, 1, 2])):
        value = forged(value, chance)
    return json.dumps(value).encode()


def plain(text: bytes) -> Any:
    """What Python's own reader makes of it, None if nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def case(seed: int, folder: Path) -> str:
    chance = random.Random(seed)
    which = chance.choice([_dataset, _dataset, _record, _record, _manifest, _cache])
    return which(chance, folder)


def _opened(folder: Path, where: Path) -> tuple[dict[str, Any], str]:
    """All that the dataset has; or nothing, and the refusal, which names the folder."""
    try:
        verify_dataset(str(folder))
        found = Dataset.open(str(folder))
        return material.everything(found), ""
    except UserError as error:
        refusal = str(error)
    assert where.name in refusal or str(folder) in refusal or ".tar" in refusal, refusal
    assert "\n" not in refusal
    return {}, refusal


def _dataset(chance: random.Random, folder: Path) -> str:
    name = chance.choice(["own", "adopted"])
    place = material.copied(name, folder)
    path = place / "dataset.json"
    text = damaged(path.read_bytes(), chance)
    path.write_bytes(text)
    found, refusal = _opened(place, path)
    if refusal:
        return refusal
    # It is opened, so it is sound; and of as many shards as it says.
    whole = material.opened(name)
    kept = whole.shards[: plain(text)["shards"]]
    assert found == material.everything(Dataset(whole.folder, whole.name, tuple(kept)))
    return "read"


def _record(chance: random.Random, folder: Path) -> str:
    name = chance.choice(["own", "adopted"])
    place = material.copied(name, folder)
    (place / "_records" / "manifest.jsonl").unlink(missing_ok=True)
    path = chance.choice(sorted((place / "_records").glob("0*.json")))
    text = damaged(path.read_bytes(), chance)
    path.write_bytes(text)
    found, refusal = _opened(place, path)
    if refusal:
        return refusal
    assert found == material.everything(material.opened(name))
    return "read"


def _manifest(chance: random.Random, folder: Path) -> str:
    """It is derived: whatever is done to a line, the record itself is there to be read."""
    place = material.copied("adopted", folder)
    path = place / "_records" / "manifest.jsonl"
    lines = path.read_bytes().splitlines()
    at = chance.randrange(len(lines))
    lines[at] = damaged(lines[at], chance)
    path.write_bytes(b"\n".join(lines) + chance.choice([b"", b"\n", b"\n\n"]))
    found, refusal = _opened(place, path)
    if refusal:
        return refusal
    assert found == material.everything(material.opened("adopted"))
    return "read"


def _cache(chance: random.Random, folder: Path) -> str:
    place = material.copied("cache", folder)
    names = ["teacher.json", "views-000-002/layer.json", "captions-table-said/layer.json"]
    records = sorted(str(path.relative_to(place / material.TEACHER_NAME)) for path in place.rglob("_records/0*.json"))
    path = place / material.TEACHER_NAME / chance.choice([*names, *names, chance.choice(records)])
    path.write_bytes(damaged(path.read_bytes(), chance))
    dataset = material.opened("own")
    try:
        cache = TeacherCache.open(str(place), dataset)
        found = read_all(cache)
    except UserError as error:
        refusal = str(error)
        assert path.name in refusal or str(place) in refusal, refusal
        return refusal
    wanted = read_all(TeacherCache.open(str(material.copied("cache", folder / "sound")), dataset))
    for name, values in found.items():
        assert np.all(values == wanted[name])
    assert cache.incomplete or found.keys() == wanted.keys()
    return "read"


def read_all(cache: TeacherCache) -> dict[str, Any]:
    """All that a cache has of every sample."""
    dataset = cache.dataset
    places = np.array([(place, row) for place, shard in enumerate(dataset.shards) for row in range(shard.count)])
    found: dict[str, Any] = {}
    for view in range(cache.views):
        number = np.full(len(places), view)
        found[f"view {view}"] = cache.image_stored(places, number)
        found[f"crop {view}"] = cache.stored_views(places, number)
    for name, count in cache.captions.items():
        for number in range(count):
            found[f"{name} {number}"] = cache.text_stored(places, number, name)
            found[f"{name} text {number}"] = cache.texts(places, [number] * len(places), name)
    return found
