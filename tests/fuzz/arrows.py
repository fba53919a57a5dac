"""An Arrow file of a dataset or a cache is damaged or forged: refused by name, or read as pyarrow reads it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards import Dataset, UserError
from teacher_cache.reader import TeacherCache
from tests.fuzz import material
from tests.fuzz.jsons import read_all
from tests.fuzz.mutations import mutated


def case(seed: int, folder: Path) -> str:
    chance = random.Random(seed)
    return chance.choice([_index, _layer, _layer])(chance, folder)


def spoil(path: Path, chance: random.Random) -> None:
    """By bytes; or the table in it, cut, in pieces, with other types, names, nulls and numbers."""
    if chance.random() < 0.7:
        path.write_bytes(mutated(path.read_bytes(), chance))
        return
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    name = chance.choice(table.column_names)
    place = table.column_names.index(name)
    column = table[name].combine_chunks()
    how = chance.randrange(7)
    if how == 0:
        table = table.drop_columns([name])
    elif how == 1:
        table = table.slice(chance.randrange(table.num_rows + 1))
    elif how == 2:
        table = pa.concat_tables([table, table.slice(0, 1)])
    elif how == 3:
        table = table.rename_columns([f"{one}x" if one == name else one for one in table.column_names])
    elif how == 4:
        table = table.append_column(name, column)
    elif how == 5:
        nulled = pa.array([None, *column.to_pylist()[1:]], column.type)
        table = table.set_column(place, table.schema.field(name), nulled)
    elif pa.types.is_int64(column.type):
        numbers = column.to_numpy().copy()
        numbers[chance.randrange(len(numbers))] = chance.choice([-5, 1 << 20, 1 << 40, (1 << 63) - 1, -(1 << 63)])
        table = table.set_column(place, table.schema.field(name), pa.array(numbers))
    compression = chance.choice([None, None, None, "lz4", "zstd"])
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(str(path), table.schema, options=options) as sink:
        sink.write_table(table if how == 2 else table.combine_chunks())


def _index(chance: random.Random, folder: Path) -> str:
    place = material.copied(chance.choice(["own", "adopted"]), folder)
    sound = material.everything(Dataset.open(str(place)))
    path = chance.choice(sorted(place.glob("*.index.arrow")))
    before = path.read_bytes()
    spoil(path, chance)
    forged = chance.random() < 0.6
    if forged:
        material.record_again(place, int(path.name[:5]), ".index.arrow")
    try:
        dataset = Dataset.open(str(place))
        found = {}
        for shard in dataset.shards:
            found |= {key: (shard.image_bytes(row), shard.places(row)) for row, key in enumerate(shard.keys)}
            found |= {f"{key} caption": shard.record for key in shard.keys}
    except UserError as error:
        refusal = str(error)
        assert path.name in refusal, refusal
        return refusal
    if not forged:
        assert path.read_bytes() == before
        assert material.everything(dataset) == sound
        return "read"
    with pa.OSFile(str(path)) as file:
        rows = pa.ipc.open_file(file).read_all().to_pylist()
    (shard,) = (shard for shard in dataset.shards if shard.id == int(path.name[:5]))
    where, name = shard.record.file(".tar").place(shard.folder)
    tar = (where.path / name).read_bytes()
    for row in rows:
        start, size = row["image_offset"], row["image_size"]
        assert found[row["key"]][0] == tar[start : start + size]
    return "read"


def _layer(chance: random.Random, folder: Path) -> str:
    place = material.copied("cache", folder)
    dataset = material.opened("own")
    path = chance.choice(sorted(place.rglob("*.arrow")))
    spoil(path, chance)
    if chance.random() < 0.7:
        material.record_again(path.parent, int(path.name[:5]), ".arrow")
    try:
        found = read_all(TeacherCache.open(str(place), dataset))
    except UserError as error:
        refusal = str(error)
        assert path.name in refusal, refusal
        return refusal
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    shard = int(path.name[:5])
    rows = slice(4 * shard, 4 * shard + 4)
    views = path.parent.name.startswith("views")
    for index in range(material.VIEWS if views else 2):
        name = f"view {index}" if views else f"table-said {index}"
        column = table[f"{'view' if views else 'caption'}_{index:03d}"]
        _same(found[name][rows], column.combine_chunks().values.to_numpy())
        if not views:
            assert found[f"table-said text {index}"][rows] == table[f"text_{index:03d}"].to_pylist()
    return "read"


def _same(found: Any, told: Any) -> None:
    assert np.array_equal(found.reshape(-1).view(np.uint8), np.ascontiguousarray(told).view(np.uint8))
