"""What is measured on: photos with a cache as wide as ViT-L/14's, and drawn scenes with a teacher trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.cache.material import SampleBytes, photos, write_samples
from benchmarks.ingest.images import jpeg
from clip_models import create_student, save_model
from demo.scenes import render, scene
from distill.settings import OptimiserSettings, RunSettings
from distill.training.train import train
from shards import InProcess
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.dtypes import Dtype

WIDTH = 768
"""ViT-L/14's embeddings."""
TEACHERS = ("one", "two")
"""The teachers of the cache of photos."""
_SHARD = 256
_BATCH = 256


def photo_material(folder: Path, photo_folder: Path, samples: int, views: int) -> tuple[str, str]:
    """Shards of `samples` JPEGs of 341x256, and a cache of them; returns both folders.

    The two teachers are small, with random weights: what they said is as wide as ViT-L/14's, so it costs a training
    step what ViT-L/14's would.
    """
    bodies = photos(photo_folder, min(200, samples))
    caption = [scene(number, "train").caption for number in range(samples)]
    shards = _write(folder / "photos", [SampleBytes(bodies[row % len(bodies)], caption[row]) for row in range(samples)])
    specs = []
    for seed, name in enumerate(TEACHERS):
        config = architecture(folder / f"{name}.json", embed_dim=WIDTH, image_size=32, width=64, layers=1, context=77)
        model, full = create_student(config, seed)
        save_model(model.eval(), full, str(folder / name))
        specs.append(TeacherSpec(str(folder / name), name))
    return shards, build(shards, folder / "cache", tuple(specs), views)


def scene_material(folder: Path, samples: int, pixels: int, teacher_steps: int) -> tuple[str, str]:
    """Shards of `samples` drawn scenes, and a ViT trained on them for a while; returns both folders."""
    drawn = (scene(number, "train") for number in range(samples))
    shards = _write(folder / "scenes", [SampleBytes(jpeg(render(one, pixels + 16), 95), one.caption) for one in drawn])
    config = architecture(folder / "teacher.json", embed_dim=64, image_size=pixels, width=128, layers=3, context=24)
    settings = RunSettings(
        shards=(shards,),
        out=str(folder / "teacher"),
        student=config,
        views=4,
        steps=teacher_steps,
        batch_size=64,
        optimiser=OptimiserSettings(lr=1.5e-3, warmup=teacher_steps // 10),
        checkpoint_every=teacher_steps,
    )
    return shards, train(settings).model


def build(shards: str, cache: Path, teachers: tuple[TeacherSpec, ...], views: int, dtype: Dtype = "float16") -> str:
    """Run teachers over shards; returns the cache's folder."""
    build_cache(
        BuildSettings(shards=shards, cache=str(cache), teachers=teachers, views=views, dtype=dtype, batch_size=_BATCH),
        InProcess(),
    )
    return str(cache)


def architecture(path: Path, *, embed_dim: int, image_size: int, width: int, layers: int, context: int) -> str:
    """Write a CLIP with a ViT of patch 16 as open_clip describes one; returns the path."""
    config: dict[str, Any] = {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": image_size, "layers": layers, "width": width, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": context, "vocab_size": 49408, "width": width // 2, "heads": 2, "layers": layers},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return str(path)


def _write(folder: Path, samples: list[SampleBytes]) -> str:
    write_samples(folder, [samples[first : first + _SHARD] for first in range(0, len(samples), _SHARD)])
    return str(folder)
