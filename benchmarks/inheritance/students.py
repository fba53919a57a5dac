"""The students: from scratch, by manual and by automatic inheritance; all else about them is the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.inheritance.material import LABEL, Material
from clip_models import load_model
from distill.pruning import PruneSettings
from distill.run_folder import RunFiles, read_log
from distill.settings import EvaluationSettings, OptimiserSettings, RunSettings
from distill.training.in_run import InRun
from distill.training.run import Run
from distill.training.train import train
from shards import Folder

KINDS = ("scratch", "manual", "automatic")
FIGURES = {
    "top1": "eval/zero_shot/top1",
    "top5": "eval/zero_shot/top5",
    "image_to_text": "eval/retrieval/image_to_text/R@5",
    "text_to_image": "eval/retrieval/text_to_image/R@5",
}
"""What is recorded at every moment, in percent; retrieval is recall at 5."""

Moments = dict[int, dict[str, float]]
"""By how many steps were done: the figures."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How the students are trained: `steps` in all, scored every `every`.

    The automatic one learns for the first `pruning` of them what to leave out, and is then as large as the manual one:
    `sparsity` is the share of the teacher's attention and MLP parameters that has to go; of the manual one's 0.78 have
    gone, and pruning overshoots by a few hundredths where it is this short.
    """

    steps: int
    every: int
    pruning: int
    batch_size: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)
    sparsity: float = 0.75


@dataclass(frozen=True)
class Students:
    """All runs of a work folder; every method finds what is done already."""

    material: Material
    course: Course

    def jobs(self) -> list[Callable[[], None]]:
        """What is left to do, one job a student, the longest first; each can be called in a process of its own."""
        all_of_them = [(kind, seed) for kind in reversed(KINDS) for seed in self.course.seeds]
        return [partial(self.make, kind, seed) for kind, seed in all_of_them if not self._path(kind, seed).exists()]

    def scores(self) -> dict[str, dict[int, dict[str, Any]]]:
        """By kind and seed, what `make` found."""
        return {
            kind: {seed: json.loads(self._path(kind, seed).read_bytes()) for seed in self.course.seeds}
            for kind in KINDS
        }

    def make(self, kind: str, seed: int) -> None:
        """Train one student to its end, and publish its figures at every moment and its size."""
        first, *rest = self._runs(kind, seed)
        moments = {0: self._untrained(first)}
        done = 0
        for run in (first, *rest):
            train(run)
            moments |= {done + step: figures for step, figures in _logged(RunFiles(run.out)).items()}
            done += run.steps or 0
        last = RunFiles((first, *rest)[-1].out)
        found: dict[str, Any] = {"moments": moments, **size(str(last.model))}
        pruned = RunFiles(first.out).hook("pruning")
        if pruned.exists():
            found["pruning"] = json.loads(pruned.read_text())
            # What the pruning run scored last was under masks; the dense model goes on from here.
            moments[first.steps or 0] = self._untrained(rest[0])
        path = self._path(kind, seed)
        Folder(path.parent).publish(path.name, json.dumps(found).encode())

    def _path(self, kind: str, seed: int) -> Path:
        return self.material.folder / "scores" / f"{kind}-{seed}.json"

    def _runs(self, kind: str, seed: int) -> list[RunSettings]:
        """The runs that make a student, one after the other."""
        course, place = self.course, self.material
        whole = RunSettings(
            shards=(place.train,),
            out=str(place.folder / "runs" / f"{kind}-{seed}"),
            student=place.architecture("student"),
            cache=(place.cache,),
            losses={"affinity": 1},
            steps=course.steps,
            batch_size=course.batch_size,
            optimiser=OptimiserSettings(lr=1e-3, warmup=course.every // 2),
            evaluation=EvaluationSettings(on=(place.test,), every=course.every, classes=place.classes, label=LABEL),
            seed=seed,
            checkpoint_every=course.every,
        )
        if kind == "scratch":
            return [whole]
        if kind == "manual":
            return [replace(whole, initial=place.teacher)]
        pruning = replace(
            whole,
            out=f"{whole.out}-pruning",
            student=place.teacher,
            initial=place.teacher,
            steps=course.pruning,
            # TinyCLIP moves masks at 0.02 for thousands of steps; here few have to take them as far.
            prune=PruneSettings(target=course.sparsity, ramp=course.pruning * 2 // 3, lr=0.2),
            optimiser=replace(whole.optimiser, schedule="constant"),
        )
        dense = str(RunFiles(pruning.out).model)
        # Another seed: with the same one it would be shown the same samples again.
        rest = replace(
            whole,
            student=dense,
            initial=dense,
            steps=course.steps - course.pruning,
            seed=1000 + seed,
            # The pruning run has warmed up.
            optimiser=replace(whole.optimiser, warmup=0),
        )
        return [pruning, rest]

    def _untrained(self, run: RunSettings) -> dict[str, float]:
        """The figures of a run's student before its first step."""
        opened = Run(run)
        assert run.evaluation is not None
        figures = InRun(run.evaluation, opened.config, opened.device)(opened.delivered)
        return {name: figures[key] for name, key in FIGURES.items()}


def teacher_score(material: Material, evaluation_batch: int = 256) -> dict[str, Any]:
    """The teacher's own figures and size."""
    loaded = load_model(material.teacher)
    settings = EvaluationSettings(
        on=(material.test,), classes=material.classes, label=LABEL, batch_size=evaluation_batch
    )
    figures = InRun(settings, loaded.config, torch.device("cpu"))(loaded.model)
    return {**{name: figures[key] for name, key in FIGURES.items()}, **size(material.teacher)}


def size(model: str) -> dict[str, int]:
    """A model folder's parameters: all, without the token embedding (as TinyCLIP counts), attention and MLPs alone."""
    named = {name: parameter.numel() for name, parameter in load_model(model).model.named_parameters()}
    return {
        "parameters": sum(named.values()),
        "without_token_embedding": sum(n for name, n in named.items() if "token_embedding" not in name),
        "attention_and_mlp": sum(n for name, n in named.items() if re.search(r"\.(attn|mlp)\.", name)),
    }


def _logged(run: RunFiles) -> Moments:
    return {
        line["step"]: {name: line[key] for name, key in FIGURES.items()}
        for line in read_log(run.log)
        if FIGURES["top1"] in line
    }
