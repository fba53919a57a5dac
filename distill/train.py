"""The training loop: a student from shards and, with a cache, from what the teacher said about the same views.

settings → dataset, cache, student, losses, optimiser          `Run.prepare`
step     → batch (a function of the step alone)                `loader.py`
         → student embeddings → Σ weight·loss → gradients      `Run.step`
         → clipped, AdamW at the step's learning rate
every so often → a log line, a checkpoint                      `train`
end      → the student as an open_clip folder in OUT/model, then OUT/done.json
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_models import ModelConfig, Normaliser, autocast, create_student, save_model, square_side, tokenizer_for
from distill.checkpoint import Checkpoints
from distill.loader import Batch, Loader, Views
from distill.logs import RunLog
from distill.losses import LOSSES, Embeddings, LossShape, WeightedSum
from distill.optim import learning_rate, make_adamw
from distill.order import Order
from distill.settings import RunSettings
from shards import Dataset, Folder, UserError, seed64
from shards.fingerprint import first_difference
from shards.progress import Meter
from teacher_cache.join import Join
from teacher_cache.reader import TeacherCache
from teacher_cache.views import ViewPolicy

DONE = "done.json"
SETTINGS = "settings.json"

Targets = Callable[[Batch], Embeddings | None]
"""The teacher's embeddings of a batch; from the cache in every real run, from a live teacher in comparisons."""


@dataclass(frozen=True)
class Result:
    """A finished run: `model` is the student's open_clip folder, `loss` the mean of the last logged interval.

    `samples_per_second` covers the steps of this call alone and is None if there were none.
    """

    model: str
    steps: int
    loss: float
    samples_per_second: float | None


class Run:
    """Everything a step needs. `step` changes the student; nothing here touches the disk."""

    def __init__(self, settings: RunSettings, *, teacher_size: int | None = None) -> None:
        """Open data and cache, make the student. `teacher_size` as in `Loader`, for a live teacher beside the run."""
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dataset = Dataset.open(settings.shards)
        self.cache = _open_cache(settings, self.dataset)
        self.model, self.config = _make_student(settings)
        self.model.to(self.device)
        self.order = Order(_rows(self.dataset, self.cache), settings.batch_size, settings.seed)
        if not self.order.steps_per_epoch:
            raise UserError(
                f"{self.order.samples} samples do not fill one batch of {settings.batch_size}",
                where=settings.shards,
                do="Use a smaller --batch-size",
            )
        epochs = settings.epochs or 0.0
        self.steps = settings.steps or max(1, round(epochs * self.order.steps_per_epoch))
        views = Views(self.cache.policy, self.cache.views) if self.cache else Views(ViewPolicy(), settings.views)
        self.loader = Loader(
            self.dataset,
            self.order,
            views,
            tokenizer_for(self.config),
            image_size=square_side(self.config, settings.student),
            cache=self.cache,
            teacher_size=teacher_size,
        )
        shape = LossShape(self.config["model_cfg"]["embed_dim"], self.cache.teacher.embed_dim if self.cache else None)
        weights = settings.weights()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed64("loss", settings.seed) >> 1)
            self.loss = WeightedSum({name: LOSSES[name](shape) for name in weights}, weights).to(self.device)
        self._pin()
        self.optimiser = make_adamw([self.model, self.loss], settings.optimiser)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self._normalise = Normaliser(self.config, self.device)

    def identity(self) -> dict[str, Any]:
        """What decides the trained weights: settings, data, cache and the student's architecture."""
        return {
            "settings": json.loads(json.dumps(self.settings.identity())),
            "steps": self.steps,
            "data": self.dataset.content,
            "cache": {"views": self.cache.views, "content": self.cache.content()} if self.cache else None,
            "student": json.loads(json.dumps(self.config)),
        }

    def cached_targets(self, batch: Batch) -> Embeddings | None:
        """The cache's embeddings of the batch's own views and captions."""
        if self.cache is None or batch.teacher_image is None or batch.teacher_text is None:
            return None
        scale = self.settings.teacher_scale or self.cache.teacher.logit_scale
        image, text = (rows.to(self.device, non_blocking=True) for rows in (batch.teacher_image, batch.teacher_text))
        return Embeddings(image, text, scale, None if batch.taught is None else batch.taught.to(self.device))

    def embed(self, batch: Batch) -> Embeddings:
        """The student's embeddings of a batch, float32 of unit norm, with gradient."""
        pixels = batch.images.to(self.device, non_blocking=True)
        tokens = batch.tokens.to(self.device, non_blocking=True)
        with autocast(self.device, self.settings.precision):
            image = self.model.encode_image(self._normalise(pixels))
            text = self.model.encode_text(tokens)
        image, text = (F.normalize(rows.float(), dim=-1) for rows in (image, text))
        return Embeddings(image, text, self.model.logit_scale.exp())

    def step(self, batch: Batch, targets: Targets) -> dict[str, Tensor]:
        """One optimiser step on a batch; returns loss, its terms, gradient norm and logit scale as 0-d tensors."""
        settings = self.settings
        # Whatever is random in a step (dropout) depends on the step alone, so a resumed run repeats it.
        torch.manual_seed(seed64("step", settings.seed, batch.step) >> 1)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(batch.step, self.steps, settings.optimiser)
        total, terms = self.loss(self.embed(batch), targets(batch))
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimiser)
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.optimiser.clip_norm or math.inf)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if settings.student_scale is None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, math.log(100))
        scale = self.model.logit_scale.detach().exp()
        return {"loss": total.detach(), **terms, "grad_norm": norm.detach(), "logit_scale": scale}

    def _pin(self) -> None:
        if self.settings.student_scale is not None:
            with torch.no_grad():
                self.model.logit_scale.fill_(math.log(self.settings.student_scale))
            self.model.logit_scale.requires_grad_(False)


def _open_cache(settings: RunSettings, dataset: Dataset) -> TeacherCache | None:
    if settings.cache is None:
        return None
    join = Join(policy=settings.join, limit=settings.join_limit)
    cache = TeacherCache.open(settings.cache, dataset, settings.teacher_name, join)
    cache.require("txt")
    return cache


def _rows(dataset: Dataset, cache: TeacherCache | None) -> list[int | np.ndarray]:
    """For each shard how many samples take part, or which."""
    if cache is None or not cache.missing:
        return [shard.count for shard in dataset.shards]
    return list(cache.kept)


def _make_student(settings: RunSettings) -> tuple[Any, ModelConfig]:
    model, config = create_student(settings.student, settings.seed)
    return model.train(), config


def train(settings: RunSettings) -> Result:
    """Run `settings` to its end in `settings.out`, going on from the newest checkpoint there.

    Raises:
        UserError: unusable data, cache or student; a run folder made with other settings; a loss that is not finite.
    """
    out = Path(settings.out)
    run = Run(settings)
    _claim(out, run)
    model = out / "model"
    if (out / DONE).exists() and model.is_dir():
        done: dict[str, Any] = json.loads((out / DONE).read_text())
        return Result(str(model), done["steps"], done["loss"], samples_per_second=None)
    checkpoints = Checkpoints(out)
    saved = checkpoints.steps()
    start, sums = 0, _Interval(settings)
    if saved:
        start = saved[-1]
        state = checkpoints.load(start, run.model, run.loss, run.optimiser)
        run.scaler.load_state_dict(state["scaler"])
        sums.restore(state["interval"])
    began = time.monotonic()
    with (
        RunLog(out, start) as log,
        Meter(f"distill {out.name}", run.steps, unit="steps", done=start) as meter,
        contextlib.closing(run.loader.batches(start, run.steps)) as batches,
    ):
        for batch in batches:
            step = batch.step + 1
            sums.add(step, run.step(batch, run.cached_targets))
            if step % settings.log_every == 0 or step == run.steps:
                log.write(step, {**sums.take(), "lr": run.optimiser.param_groups[0]["lr"]})
            meter.advance(1, items=settings.batch_size, note=f"loss {sums.last:.3f}" if sums.last else "")
            if step % settings.checkpoint_every == 0 or step == run.steps:
                state = {"scaler": run.scaler.state_dict(), "interval": sums.state()}
                checkpoints.save(step, run.model, run.loss, run.optimiser, state)
    seconds = time.monotonic() - began
    checkpoints.prune()
    save_model(run.model, run.config, str(model))
    for folder in (Folder(out), Folder(model)):
        folder.sweep()
    Folder(out).publish(DONE, json.dumps({"steps": run.steps, "loss": sums.last}).encode())
    trained = run.steps - start
    speed = trained * settings.batch_size / seconds if trained else None
    return Result(str(model), run.steps, sums.last, samples_per_second=speed)


def _claim(out: Path, run: Run) -> None:
    """Write the resolved settings, or refuse a folder that holds another run's."""
    identity = run.identity()
    path = out / SETTINGS
    if path.exists():
        difference = first_difference(json.loads(path.read_text())["identity"], identity)
        if difference:
            raise UserError(
                f"this folder holds another run: {difference}",
                where=str(out),
                do="Give another --out, or the settings it was started with",
            )
        return
    text = json.dumps({"identity": identity, "settings": asdict(run.settings)}, indent=1)
    Folder(out).publish(SETTINGS, text.encode())


class _Interval:
    """Means over the steps since the last log line; part of the checkpoint, so that resumed logs are the same.

    `take` and `state` raise `UserError` if a step since then made the weights useless, so neither a log line nor a
    checkpoint is written of it.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        # With fp16 a gradient that is not finite is no failure: the scaler skips that step.
        self._vital = ("loss",) if settings.precision == "fp16" else ("loss", "grad_norm")
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._steps: list[tuple[int, dict[str, Tensor]]] = []
        self.last = 0.0

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        # Kept as tensors: reading one would make the host wait for the accelerator at every step.
        self._steps.append((step, values))

    def _fold(self) -> None:
        for step, values in self._steps:
            for name, value in values.items():
                number = float(value)
                if math.isfinite(number):
                    self._sums[name] = self._sums.get(name, 0.0) + number
                    self._counts[name] = self._counts.get(name, 0) + 1
                elif name in self._vital:
                    raise UserError(
                        f"{name} is {number} at step {step}",
                        where=self._settings.out,
                        do=f"Lower --lr (now {self._settings.optimiser.lr:g}) or the logit scale, or use "
                        "--precision fp32",
                    )
        self._steps.clear()

    def take(self) -> dict[str, float]:
        """The means, over the steps where each number was finite; begins the next interval."""
        self._fold()
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        self._sums, self._counts = {}, {}
        self.last = means["loss"]
        return means

    def state(self) -> dict[str, Any]:
        self._fold()
        return {"sums": self._sums, "counts": self._counts, "last": self.last}

    def restore(self, state: dict[str, Any]) -> None:
        self._sums, self._counts, self.last = state["sums"], state["counts"], state["last"]
