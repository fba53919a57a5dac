"""Somebody else's Parquet or a ledger is damaged or forged: refused by name, or read as pyarrow reads it."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest import ingest
from ingest.ledger import read_ledger
from ingest.report import write_report
from shards import Dataset, Folder, IncompleteError, InProcess, UserError
from shards.verify import verify_dataset
from teacher_cache.caption_table import CaptionTable
from tests.fuzz import material
from tests.fuzz.mutations import mutated

_ROWS = 12


def case(seed: int, folder: Path) -> str:
    chance = random.Random(seed)
    return chance.choice([_images, _images, _captions, _captions, _ledger])(chance, folder)


def written(columns: dict[str, Any], chance: random.Random) -> bytes:
    """A table as different writers write it."""
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        sink,
        row_group_size=chance.choice([3, 5, 1000]),
        compression=chance.choice(["none", "snappy", "zstd", "gzip"]),
        use_dictionary=chance.choice([True, False]),
        data_page_version=chance.choice(["1.0", "2.0"]),
        write_page_checksum=chance.choice([True, False]),
        store_schema=chance.choice([True, False]),
        data_page_size=chance.choice([64, 1 << 20]),
    )
    return sink.getvalue()


def spoiled(columns: dict[str, Any], chance: random.Random) -> bytes:
    """By bytes; or a table with other types, names, nulls and lengths."""
    if chance.random() < 0.25:
        name = chance.choice(list(columns))
        count = len(columns[name])
        odd: list[Any] = [None, 3, b"\xff\xfe", [], "x", {"bytes": None, "path": "x"}, ["a", None], 1.5, True]
        columns = {**columns, name: [chance.choice(odd)] * count}
        if chance.random() < 0.2:
            del columns[name]
        return written(columns, chance)
    data = bytearray(mutated(written(columns, chance), chance))
    if chance.random() < 0.3:
        # The footer tells where everything is, and how much of it.
        start = max(len(data) - 600, 0)
        data[start:] = mutated(bytes(data[start:]), chance)
    return bytes(data)


def told(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    """What pyarrow reads."""
    return pq.ParquetFile(path).read(columns=columns).to_pylist()


def values_told(path: Path, column: str) -> list[Any]:
    """What pyarrow reads of a column, group by group; of a group that it cannot read, None for each row."""
    file = pq.ParquetFile(path)
    found: list[Any] = []
    for group in range(file.num_row_groups):
        try:
            found += file.read_row_group(group, columns=[column])[column].to_pylist()
        except (OSError, pa.ArrowException):
            found += [None] * file.metadata.row_group(group).num_rows
    return found


def _images(chance: random.Random, folder: Path) -> str:
    nested = chance.random() < 0.5
    values: list[Any] = [
        {"bytes": material.jpeg(n), "path": None} if nested else material.jpeg(n) for n in range(_ROWS)
    ]
    texts: list[Any] = [f"no. {n}" for n in range(_ROWS)]
    if chance.random() < 0.3:
        texts = [[text, "more"] for text in texts]
    path = folder / "list.parquet"
    path.write_bytes(spoiled({"image": values, "text": texts, "label": list(range(_ROWS))}, chance))
    try:
        report = ingest(material.packing(path, folder / "out"), InProcess())
    except (UserError, IncompleteError) as error:
        refusal = str(error)
        assert path.name in refusal or "no row became a sample" in refusal, refusal
        return refusal
    assert report.rows == report.samples + sum(report.failed.values())
    rows = told(path, ["text"])
    assert report.rows == len(rows)
    if report.samples == 0:
        return "read"
    images = values_told(path, "image")
    for shard in Dataset.open(str(folder / "out")).shards:
        for at, key in enumerate(shard.keys):
            row = int(key.removeprefix("set-"))
            text = rows[row]["text"]
            if isinstance(text, str | list):
                assert shard.caption(at) == (text if isinstance(text, str) else text[0])
            image = images[row]
            assert shard.image_bytes(at) == (image["bytes"] if isinstance(image, dict) else image)
    return "read"


def _captions(chance: random.Random, folder: Path) -> str:
    keys = [f"own-{number:09d}" for number in range(_ROWS)]
    said: list[Any] = [f"said {key}" for key in keys]
    if chance.random() < 0.4:
        said = [[text, "more"] for text in said]
    path = folder / "captions.parquet"
    path.write_bytes(spoiled({"key": keys, "said": said}, chance))
    try:
        table = CaptionTable(str(path), "said")
        table.check()
        found = table.values([*keys, "absent"])
    except UserError as error:
        refusal = str(error)
        assert path.name in refusal, refusal
        return refusal
    rows = {row["key"]: row["said"] for row in told(path, ["key", "said"])}
    assert found == [rows.get(key) for key in keys] + [rows.get("absent")]
    return "read"


def _ledger(chance: random.Random, folder: Path) -> str:
    name = chance.choice(["own", "adopted", "packed", "packed"])
    place = material.copied(name, folder)
    path = chance.choice(sorted(place.glob("*.parquet")))
    columns = {column: values.to_pylist() for column, values in zip(*_columns(path), strict=True)}
    if chance.random() < 0.4:
        path.write_bytes(mutated(path.read_bytes(), chance))
    else:
        path.write_bytes(spoiled(columns, chance))
    problems = verify_dataset(str(place)).problems
    refusals = []
    for read in (lambda: read_ledger(Folder(place), int(path.stem)), lambda: write_report(str(place))):
        try:
            read()
        except UserError as error:
            refusals.append(str(error))
    assert all(path.name in refusal or str(place) in refusal for refusal in refusals), refusals
    if problems:
        return problems[0]
    before = pa.table(columns).select(["key", "status"]).to_pylist()
    assert told(path, ["key", "status"]) == before
    return "read"


def _columns(path: Path) -> tuple[list[str], list[pa.ChunkedArray]]:
    table = pq.read_table(path)
    return table.column_names, table.columns
