"""A build from JPEG shards to published Arrow files, beside the same model's bare forward on tensors in memory."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cache.material import SampleBytes, photos, write_samples
from benchmarks.record import spread
from clip_models import Normaliser, Precision, autocast, create_student, load_model, save_model
from shards.executor import InProcess, Outcome
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.teachers import Forward


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is run: an architecture with random weights, and how many forwards of images each way is timed for."""

    model: str = "ViT-B-32"
    precision: Precision = "fp32"
    batch_size: int = 32
    forwards: int = 256
    views: tuple[int, ...] = (1, 4, 10)
    rounds: int = 3
    compile: bool = False
    photos: int = 200


class _Timed(InProcess):
    """Notes when each shard was published: the first one has the loading of the model in it."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[float] = []

    def wait(self, most: float | None = None) -> Outcome | None:
        outcome = super().wait(most)
        self.published.append(time.perf_counter())
        return outcome


class BuildBenchmark:
    """`bare` and `build` time the same number of forwards; call them in turns."""

    def __init__(self, folder: Path, photo_folder: Path, trial: Trial) -> None:
        self._folder, self._trial = folder, trial
        self.forward = Forward(precision=trial.precision, compile=trial.compile)
        self.device = self.forward.torch_device()
        self._teacher = folder / "teacher"
        model, config = create_student(trial.model, 0)
        save_model(model.eval(), config, str(self._teacher))
        bodies = photos(photo_folder, trial.photos)
        for views in trial.views:
            # The first shard warms up.
            rows = [max(1, trial.batch_size // views), max(1, trial.forwards // views)]
            samples = [[SampleBytes(bodies[row % len(bodies)], "") for row in range(count)] for count in rows]
            write_samples(folder / f"data-{views}", samples)
        loaded = load_model(str(self._teacher), self.device)
        self.model = loaded.model
        pixels = np.random.default_rng(0).integers(0, 256, (trial.batch_size, 224, 224, 3), np.uint8)
        self.batch = Normaliser(loaded.config, self.device)(torch.from_numpy(pixels).to(self.device))
        self._encode = torch.compile(self.model.encode_image) if trial.compile else self.model.encode_image

    @torch.inference_mode()
    def bare(self) -> float:
        """Images a second: normalised float tensors that lie on the device, same batch size, same precision."""
        batches = self._trial.forwards // self._trial.batch_size
        with autocast(self.device, self._trial.precision):
            self._encode(self.batch, normalize=True).sum().item()
            start = time.perf_counter()
            for _ in range(batches):
                last = self._encode(self.batch, normalize=True)
            last.sum().item()
        return batches * self._trial.batch_size / (time.perf_counter() - start)

    def build(self, views: int) -> tuple[float, float]:
        """Forwards a second of a shard with `views` views, from opening it to its publication; seconds before that."""
        out = self._folder / "cache"
        shutil.rmtree(out, ignore_errors=True)
        executor = _Timed()
        settings = BuildSettings(
            shards=str(self._folder / f"data-{views}"),
            cache=str(out),
            teachers=(TeacherSpec(str(self._teacher), "bench"),),
            towers="image",
            views=views,
            forward=self.forward,
            batch_size=self._trial.batch_size,
        )
        start = time.perf_counter()
        report = build_cache(settings, executor)
        first, second = executor.published
        forwards = max(1, self._trial.forwards // views) * views
        assert report.views == views
        return forwards / (second - first), first - start

    def measure(self) -> dict[str, Any]:
        """All ways once in every round, backwards in every other: rates, and by round each one's share of the bare."""
        ways = ["bare", *(f"views_{views}" for views in self._trial.views)]
        runs: dict[str, list[float]] = {way: [] for way in ways}
        start_up: list[float] = []
        for turn in range(self._trial.rounds):
            for way in ways if turn % 2 == 0 else reversed(ways):
                if way == "bare":
                    runs[way].append(self.bare())
                else:
                    rate, before = self.build(int(way.removeprefix("views_")))
                    runs[way].append(rate)
                    start_up.append(before)
        return {
            "model": self._trial.model,
            "precision": self._trial.precision,
            "batch_size": self._trial.batch_size,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "forwards_per_second": {way: spread(values) for way, values in runs.items()},
            "ratio_to_bare": {
                way: spread([rate / bare for rate, bare in zip(runs[way], runs["bare"], strict=True)])
                for way in ways[1:]
            },
            "start_up_seconds": spread(start_up),
        }
