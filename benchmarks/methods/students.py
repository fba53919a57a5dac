"""The students: one architecture, one cache, one budget of CPU seconds each, and what they score."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from audition.run import audition
from audition.settings import AuditionSettings
from benchmarks.inheritance.material import LABEL, Material
from clip_models import join_towers, load_model
from clip_models.spec import CONFIG_NAME
from distill.settings import OptimiserSettings, RunSettings
from distill.training.run import Run
from distill.training.train import train
from evaluation import SetSettings, evaluate, open_set
from shards import Folder

KINDS = ("plain", "lit", "clipa", "aced", "auditioned")
SIDE, SHORT_SIDE, CONTEXT, SHORT_CONTEXT = 64, 32, 16, 8
_FIRST_STAGE = 0.75
"""Of CLIPA's time."""
_WARM, _TIMED = 2, 6


@dataclass(frozen=True, kw_only=True)
class Course:
    """`seconds` of CPU for each student, however many steps they make. `scales` are those that an audition hears."""

    seconds: float
    batch_size: int = 64
    super_batch: int = 256
    seeds: tuple[int, ...] = (0, 1)
    scales: tuple[float, ...] = (10.0, 30.0, 100.0)
    audition_steps: int = 40


@dataclass(frozen=True)
class Students:
    """All students of a work folder."""

    material: Material
    course: Course

    def write_architecture(self) -> None:
        """Patches of 8 pixels: small images then cost a quarter."""
        vision = {"image_size": SIDE, "patch_size": 8, "width": 96, "head_width": 32, "layers": 3}
        words = {"context_length": CONTEXT, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
        body = {
            "model_cfg": {"embed_dim": 128, "vision_cfg": vision, "text_cfg": words},
            "preprocess_cfg": {"resize_mode": "squash"},
        }
        Folder(self.material.architecture("method-student")).publish(CONFIG_NAME, json.dumps(body).encode())

    def hear(self) -> float:
        """The logit scale that an audition on the same cache finds."""
        settings = AuditionSettings(
            shards=self.material.train,
            cache=self.material.cache,
            scales=self.course.scales,
            out=str(self.material.folder / "audition"),
            samples=4000,
            held_out=1000,
            student=self.material.architecture("method-student"),
            image_size=0,
            context_length=0,
            steps=self.course.audition_steps,
            batch_size=self.course.batch_size,
            seeds=2,
        )
        verdict, _, _ = audition(settings, None)
        return verdict.winner.scale

    def jobs(self, scale: float) -> list[Callable[[], None]]:
        """What is left to do, one job a student, seed by seed."""
        every = [(kind, seed) for seed in self.course.seeds for kind in KINDS]
        return [partial(self.make, kind, seed, scale) for kind, seed in every if not self._path(kind, seed).exists()]

    def scores(self) -> dict[str, list[dict[str, Any]]]:
        """By kind what `make` found, seed by seed."""
        return {kind: [json.loads(self._path(kind, seed).read_bytes()) for seed in self.course.seeds] for kind in KINDS}

    def make(self, kind: str, seed: int, scale: float) -> None:
        """Train one student for its seconds, and publish its figures."""
        began, steps, model = time.process_time(), [], ""
        for stage in self._stages(kind, seed, scale):
            settings = replace(stage.settings, initial=model or None)
            count = max(2, int(stage.share * self.course.seconds / _seconds_a_step(settings)))
            model = train(replace(settings, steps=count)).model
            steps.append(count)
        seconds = time.process_time() - began
        found = {**self._figures(kind, model), "steps": steps, "cpu_seconds": seconds}
        path = self._path(kind, seed)
        Folder(path.parent).publish(path.name, json.dumps(found).encode())

    def _path(self, kind: str, seed: int) -> Path:
        return self.material.folder / "scores" / f"{kind}-{seed}.json"

    def _stages(self, kind: str, seed: int, scale: float) -> list[_Stage]:
        plain = RunSettings(
            shards=(self.material.train,),
            cache=(self.material.cache,),
            out=str(self.material.folder / "runs" / f"{kind}-{seed}"),
            student=self.material.architecture("method-student"),
            losses={"affinity": 1.0, "contrastive": 1.0},
            steps=1000,
            batch_size=self.course.batch_size,
            optimiser=OptimiserSettings(lr=1e-3),
            checkpoint_every=100_000,
            seed=seed,
        )
        if kind == "lit":
            return [_Stage(replace(plain, image_tower="cache", losses={"contrastive": 1.0}))]
        if kind == "clipa":
            small = replace(plain, image_size=SHORT_SIDE, context_length=SHORT_CONTEXT, out=f"{plain.out}-small")
            gentle = OptimiserSettings(lr=5e-4)
            return [_Stage(small, _FIRST_STAGE), _Stage(replace(plain, optimiser=gentle), 1 - _FIRST_STAGE)]
        changes: dict[str, dict[str, Any]] = {
            "aced": {"super_batch": self.course.super_batch},
            "auditioned": {"teacher_scale": scale},
        }
        return [_Stage(replace(plain, **changes.get(kind, {})))]

    def _figures(self, kind: str, model: str) -> dict[str, float]:
        loaded = load_model(model)
        if kind == "lit":
            # What it is used with: the image tower whose embeddings it met.
            joined, config = join_towers(loaded, load_model(self.material.teacher))
            loaded = replace(load_model(self.material.teacher), model=joined, config=config, tokenizer=loaded.tokenizer)
        return scores(loaded, self.material)


@dataclass(frozen=True)
class _Stage:
    settings: RunSettings
    share: float = 1.0


def scores(loaded: Any, material: Material) -> dict[str, float]:
    """Zero-shot top-1, and recall at 5 both ways, of the photos that nobody was trained on; in percent."""
    chosen = SetSettings(classes=material.classes, label=LABEL)
    found = evaluate(loaded, open_set(material.test, chosen), batch_size=250, limits=False).result
    retrieval = found["retrieval"]
    recall = (retrieval["image_to_text"]["R@5"] + retrieval["text_to_image"]["R@5"]) / 2
    return {"top1": found["zero_shot"]["top1"], "recall5": recall}


def _seconds_a_step(settings: RunSettings) -> float:
    """CPU seconds, those of the threads that make batches included."""
    run = Run(settings)
    with closing(run.loader.batches(0, _WARM + _TIMED)) as batches:
        for batch in batches:
            if batch.step == _WARM:
                began = time.process_time()
            run.step(batch)
    return (time.process_time() - began) / _TIMED
