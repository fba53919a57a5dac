"""Datasets of ours, written and packed, one of somebody else's tars, and a cache: made once a process, copied for each
case."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ingest import ImageSettings, IngestSettings, SourceSettings, ingest
from shards import Dataset, Folder, InProcess, Shard, Spec, read_records
from shards.adopt import AdoptSettings, adopt, find_tars
from shards.publication import Publication
from shards.samples import write_shards
from teacher_cache.dtypes import Dtype, store
from teacher_cache.layout import LAYER, TEACHER, LayerFacts, TeacherFacts, layer_table, publish_facts, write_layer_file
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import View, pack

WIDTH = 8
VIEWS = 3
TEACHER_NAME = "teach"


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    held = tempfile.TemporaryDirectory(prefix="fuzz-")
    root = Path(held.name)
    shards = [[_sample(number, "own") for number in range(4 * part, 4 * part + 4)] for part in range(3)]
    write_cache(write_shards(root / "own", shards, name="own"), root / "cache")
    for part in range(2):
        with tarfile.open(root / f"{part}.tar", "w") as tar:
            for key, image, caption, fields in (_sample(number, "theirs") for number in range(3 * part, 3 * part + 3)):
                parts = {"jpg": image, "cls": b"7", "json": json.dumps({**fields, "caption": caption}).encode()}
                for extension, data in parts.items():
                    entry = tarfile.TarInfo(f"{key}.{extension}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    settings = AdoptSettings(patterns=(str(root / "{0,1}.tar"),), out=str(root / "adopted"))
    adopt(settings, find_tars(settings.patterns), InProcess())
    columns = {"image": [jpeg(number) for number in range(8)], "text": [f"no. {number}" for number in range(8)]}
    columns["image"][5] = b"no picture"
    pq.write_table(pa.table(columns), root / "list.parquet")
    ingest(packing(root / "list.parquet", root / "packed"), InProcess())
    return held


def packing(listing: Path, out: Path) -> IngestSettings:
    """Of a list with images, which stay as they are."""
    return IngestSettings(
        source=SourceSettings(paths=(str(listing),), files=True),
        out=str(out),
        name="set",
        shard_size=5,
        image=ImageSettings(size=64, resize_mode="no", skip_reencode=True),
        engine="files",
    )


def copied(name: str, folder: Path) -> Path:
    """`own`, `adopted`, `packed` or `cache` in a folder; the tars of the second stay where they are."""
    shutil.copytree(Path(_made().name) / name, folder / name)
    return folder / name


def opened(name: str) -> Dataset:
    """The sound dataset."""
    return Dataset.open(str(Path(_made().name) / name))


def jpeg(number: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (16 + number, 12), (9 * number, 18 * number % 256, 255 - 9 * number)).save(sink, "JPEG")
    return sink.getvalue()


def _sample(number: int, name: str) -> tuple[str, bytes, str, dict[str, object]]:
    return f"{name}-{number:09d}", jpeg(number), f"picture {number} é", {"n": number, "words": ["a", "b"]}


def everything(dataset: Dataset) -> dict[str, tuple[bytes, str, dict[str, object]]]:
    """Key → image, caption, metadata."""
    return {
        key: (shard.image_bytes(row), shard.caption(row), shard.meta(row))
        for shard in dataset.shards
        for row, key in enumerate(shard.keys)
    }


def write_cache(dataset: Dataset, out: Path, dtype: Dtype = "int8") -> None:
    """What a build of two layers leaves: views with their parameters, captions with their texts."""
    place = Folder(out).child(TEACHER_NAME)
    teacher = TeacherFacts(
        **{"name": TEACHER_NAME, "spec": "none", "identity": {"weights": "0" * 16}, "embed_dim": WIDTH},
        **{"logit_scale": 100.0, "logit_bias": None, "image_size": 32, "has_text": True, "versions": {}},
    )
    publish_facts(place, TEACHER, teacher)
    policy = ViewPolicy()
    common = {"teacher": teacher.fingerprint, "dataset": dataset.name, "batch_size": 4}
    settings = {"dtype": dtype, "precision": "fp32"}
    views = LayerFacts(
        **{"kind": "views", "name": f"views-000-{VIEWS - 1:03d}", "columns": tuple(range(VIEWS)), **common},
        settings={**settings, "policy": policy.identity()},
    )
    captions = LayerFacts(
        **{"kind": "captions", "name": "captions-table-said", "columns": (0, 1), **common},
        settings={**settings, "source": {"kind": "table", "count": 2, "column": "said", "sha256": "0" * 64}},
    )
    for layer in (views, captions):
        publish_facts(place.child(layer.name), LAYER, layer)
        for shard in dataset.shards:
            _write_shard(place.child(layer.name), layer, shard, policy)


def _write_shard(folder: Folder, layer: LayerFacts, shard: Shard, policy: ViewPolicy) -> None:
    chance = np.random.default_rng([shard.id, len(layer.name)])
    rows = chance.normal(size=(len(layer.columns), shard.count, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    stored = [store(part, layer.dtype) for part in rows]
    views = layer.kind == "views"
    crops = pack([View(0, 0, 1, 1, False)] * shard.count, photometric=policy.photometric)
    params = [crops] * len(layer.columns) if views else []
    texts = [] if views else [[f"said {key} {index}" for key in shard.keys] for index in layer.columns]
    publication = Publication(Spec(shard.id, folder, layer.shard_fingerprint(shard.content)), shard.content)
    with publication.file(".arrow") as path:
        write_layer_file(str(path), layer_table(layer, shard.keys, stored, params=params, texts=texts))
    publication.finish(shard.count, {})


def record_again(folder: Path, shard: int, suffix: str) -> None:
    """Have the record of a shard say of a file what it now is, as a forger would."""
    place = Folder(folder)
    record = read_records(place)[shard]
    data = (folder / record.file(suffix).name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    entries = [
        replace(entry, bytes=len(data), sha256=digest) if entry.name.endswith(suffix) else entry
        for entry in record.files
    ]
    forged = replace(record, files=tuple(entries))
    place.child("_records").delete(str(record.name))
    place.child("_records").publish(str(forged.name), forged.to_json().encode())
