"""What is trained on and from: shards of product photos, a teacher trained on them, and the cache of what it said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.ingest.images import jpeg
from clip_models.spec import CONFIG_NAME
from demo.scenes import render, scene
from distill.run_folder import RunFiles
from distill.settings import OptimiserSettings, RunSettings
from distill.training.train import train
from shards import Folder, InProcess, UserError, write_dataset
from shards.dataset import DATASET
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache

COLUMNS = ("title", "article_type", "split", "jpeg")
LABEL = "article_type"
TEMPLATES = ("a photo of {}", "a product photo of {}", "{}", "{} for men", "{} for women")
"""Zero-shot by the mean over these, as is usual: what one wording alone finds hangs on the wording."""
_SHARD = 1000


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Width and layers of a transformer; its heads are 32 wide."""

    width: int
    layers: int


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How long the teacher is trained, in batches of which size, and how many views of a photo it then embeds."""

    steps: int
    batch_size: int = 128
    views: int = 2


TEACHER = (Tower(width=192, layers=6), Tower(width=96, layers=4))
"""Image tower, text tower."""
STUDENT = (Tower(width=128, layers=3), Tower(width=64, layers=2))
"""Half the teacher's depth, two thirds of its width."""


@dataclass(frozen=True)
class Material:
    """Where everything lies in a work folder."""

    folder: Path

    @property
    def train(self) -> str:
        return str(self.folder / "shards" / "train")

    @property
    def test(self) -> str:
        return str(self.folder / "shards" / "test")

    @property
    def classes(self) -> str:
        return str(self.folder / "classes.json")

    @property
    def cache(self) -> str:
        return str(self.folder / "cache")

    @property
    def teacher(self) -> str:
        """The trained teacher's model folder."""
        return str(RunFiles(self.folder / "runs" / "teacher").model)

    def architecture(self, name: str) -> str:
        """The folder that describes the model `name`, "teacher" or "student"."""
        return str(self.folder / "architectures" / name)


def draw_products(path: Path, train_rows: int, test_rows: int) -> str:
    """A file like that of the photos, of scenes that the demo draws, for a run that nobody judges; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    splits = {"train": ("train", train_rows), "test": ("held_out", test_rows)}
    drawn = [(name, scene(row, split)) for name, (split, rows) in splits.items() for row in range(rows)]
    table = {
        "title": [one.caption for _, one in drawn],
        LABEL: [one.label for _, one in drawn],
        "split": [split for split, _ in drawn],
        "jpeg": [jpeg(render(one, 80), 95) for _, one in drawn],
    }
    pq.write_table(pa.table(table), path)
    return str(path)


def write_shards(material: Material, parquet: str, train_rows: int, test_rows: int) -> dict[str, Any]:
    """Publish the photos as shards, caption = title, the article type in the metadata; returns the counts.

    All article types are classes. Rows are put in an order drawn once, as the file's is that of the shop's numbers;
    of each split the first `train_rows` and `test_rows` of that order are taken.

    Raises `UserError` if the file has not the columns `COLUMNS`.
    """
    missing = sorted(set(COLUMNS) - set(pq.read_schema(parquet).names))
    if missing:
        raise UserError(f"there is no column {missing[0]}", where=parquet, do=f"It needs {', '.join(COLUMNS)}")
    table = pq.read_table(parquet, columns=list(COLUMNS))
    classes = sorted(set(table[LABEL].to_pylist()))
    Folder(material.folder).publish("classes.json", json.dumps({"classes": classes, "templates": TEMPLATES}).encode())
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    counts = {}
    for split, rows, place in (("train", train_rows, material.train), ("test", test_rows, material.test)):
        chosen = shuffled.filter(pa.array([name == split for name in shuffled["split"].to_pylist()])).slice(0, rows)
        counts[split] = len(chosen)
        if not Path(place, DATASET).exists():
            name = f"fashion-{split}"
            write_dataset(place, _samples(name, chosen), name=name, shard_size=_SHARD)
    return {**counts, "classes": len(classes), "templates": TEMPLATES}


def _samples(name: str, table: pa.Table) -> Iterator[tuple[str, bytes, str, dict[str, Any]]]:
    rows = (row for batch in table.to_batches(_SHARD) for row in batch.to_pylist())
    for number, row in enumerate(rows):
        yield f"{name}-{number:09d}", row["jpeg"], row["title"], {LABEL: row[LABEL]}


def write_architectures(material: Material) -> None:
    """Describe teacher and student.

    Evaluation squeezes the whole photo (3:4) into the square, as the views of training do; to crop its middle would
    show the model what it has not seen.
    """
    for name, (image, text) in {"teacher": TEACHER, "student": STUDENT}.items():
        vision = {"image_size": 64, "patch_size": 16, "width": image.width, "head_width": 32, "layers": image.layers}
        words = {"context_length": 16, "vocab_size": 49408, "width": text.width, "heads": text.width // 32}
        model = {"embed_dim": 128, "vision_cfg": vision, "text_cfg": {**words, "layers": text.layers}}
        body = {"model_cfg": model, "preprocess_cfg": {"resize_mode": "squash"}}
        Folder(material.architecture(name)).publish(CONFIG_NAME, json.dumps(body).encode())


def teach(material: Material, teaching: Teaching) -> None:
    """Train the teacher by the contrastive loss alone, then cache what it says of views and titles."""
    train(
        RunSettings(
            shards=(material.train,),
            out=str(material.folder / "runs" / "teacher"),
            student=material.architecture("teacher"),
            losses={"contrastive": 1},
            views=teaching.views,
            steps=teaching.steps,
            batch_size=teaching.batch_size,
            optimiser=OptimiserSettings(lr=1e-3, warmup=teaching.steps // 10),
            checkpoint_every=max(1, teaching.steps // 10),
        )
    )
    build_cache(
        BuildSettings(
            shards=material.train,
            cache=material.cache,
            teachers=(TeacherSpec(material.teacher, "teacher"),),
            views=teaching.views,
            batch_size=teaching.batch_size,
        ),
        InProcess(),
    )
