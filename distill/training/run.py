"""One training run, opened: data, caches, student, losses, optimiser, and the step that moves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_models import ModelConfig, square_side, tokenizer_for
from clip_models.measure import tower_sizes
from clip_models.precision import PRECISIONS
from distill.data.loader import Batch, Loader, Views
from distill.data.order import Order
from distill.losses import LOSSES, Embeddings, LossShape, WeightedSum
from distill.pruning import Pruning
from distill.pruning.materialise import materialise
from distill.settings import RunSettings
from distill.training.optim import clip_gradients, learning_rate, make_adamw, make_average
from distill.training.ranks import Ranks
from distill.training.step import Gradients, Targets
from distill.training.student import Student, make_student, parameters
from shards import Dataset, Folder, UserError, seed64
from teacher_cache.captions import CaptionSource
from teacher_cache.layout import teacher_names
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import Join
from teacher_cache.views import ViewPolicy

TargetsOf = Callable[[Batch], Targets]
"""The teachers' embeddings of a batch; from the cache in every real run, from live teachers in comparisons."""


class Run:
    """Everything a step needs. `step` changes the student; nothing here touches the disk.

    `ranks`: which process of the run this is. `teacher_size` as in `Loader`, for a live teacher beside the run.
    Raises `UserError` for data, cache, student or losses that do not fit each other.
    """

    def __init__(self, settings: RunSettings, ranks: Ranks | None = None, *, teacher_size: int | None = None) -> None:
        self.settings = settings
        self.ranks = ranks or Ranks.join()
        self.device = self.ranks.device
        self.dataset = Dataset.open(settings.shards)
        _check_captioned(settings, self.dataset)
        self.caches = _open_caches(settings, self.dataset)
        self.model, self.config, self.inherited = make_student(settings)
        self.model.to(self.device)
        self._sizes = tower_sizes(self.model)
        self.initial = _weights_digest(self.model) if settings.initial else None
        self.pruning = Pruning(self.model, self.config, settings.prune, settings.seed) if settings.prune else None
        self.order = Order(_rows(self.dataset, self.caches), settings.batch_size, settings.seed)
        _check_batch(settings, self.ranks, self.order)
        self.steps = settings.steps or max(1, round((settings.epochs or 0.0) * self.order.steps_per_epoch))
        if settings.prune is not None and settings.prune.ramp > self.steps:
            raise UserError(
                f"a ramp of {settings.prune.ramp} steps does not end in {self.steps}",
                where="--prune-ramp",
                do="Shorten it: some steps after it are needed too",
            )
        seen = next((cache for cache in self.caches if cache.views), None)
        if seen and settings.views != 1:
            raise UserError(
                f"{settings.views} views were asked for, but the cache brings its {seen.views}", do="Leave out --views"
            )
        from_cache = settings.text_tower == "cache"
        self.loader = Loader(
            self.dataset,
            self.order,
            Views(seen.policy, seen.views) if seen else Views(ViewPolicy(), settings.views),
            None if from_cache else tokenizer_for(self.config),
            image_size=square_side(self.config, settings.student),
            caches=self.caches,
            captions=settings.captions,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            teacher_size=teacher_size,
        )
        self.terms = settings.terms()
        self.loss = self._make_loss()
        self.student = Student(self.model, self.config, settings, self.device).to(self.device)
        self._trained = parameters([self.student, self.loss])
        if not self._trained:
            raise UserError("nothing is left to be trained", where="--lock", do="Lock one tower at most")
        groups = self.pruning.groups() if self.pruning else ()
        self.optimiser = make_adamw(self.student, self.loss, settings.optimiser, groups)
        if settings.compile:
            self.student.compile()
        self._gradients = Gradients(
            self.student,
            self.loss,
            self.ranks,
            batch_size=settings.batch_size,
            micro_batches=settings.micro_batches,
            text_from_cache=from_cache,
            seed=lambda step, at: seed64("step", settings.seed, step, at) >> 1,
        )
        self.average = make_average(self.model, settings.optimiser.ema) if settings.optimiser.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=PRECISIONS[settings.precision].scaled)

    def _make_loss(self) -> WeightedSum:
        width = self.config["model_cfg"]["embed_dim"]
        shape = LossShape(width, tuple(cache.teacher.embed_dim for cache in self.caches))
        for cache in self.caches:
            needy = [name for name in self.terms if LOSSES[name].needs_teacher and not cache.views]
            if needy:
                raise UserError(
                    f"the loss {needy[0]!r} needs image embeddings, and this teacher embedded captions only",
                    where=str(cache.folder),
                    do="Use another teacher, or the contrastive loss",
                )
            if "sigmoid_affinity" in self.terms and cache.teacher.logit_bias is None:
                raise UserError(
                    "the loss 'sigmoid_affinity' needs a teacher with a logit bias: without one nearly every pair is a "
                    "match to it",
                    where=str(cache.folder),
                    do="Use a SigLIP teacher, or affinity",
                )
        if self.settings.text_tower == "cache" and shape.teacher_dims != (width,):
            raise UserError(
                f"text embeddings {', '.join(map(str, shape.teacher_dims))} wide cannot stand for the text tower of a "
                f"student {width} wide",
                where=self.settings.student,
                do="Choose one teacher, and a student, of equal width",
            )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed64("loss", self.settings.seed) >> 1)
            losses = {name: LOSSES[name](shape, **term.options) for name, term in self.terms.items()}
        return WeightedSum(losses).to(self.device)

    def identity(self) -> dict[str, Any]:
        """What decides the trained weights: settings, data, cache and the student's architecture."""
        caches = [
            {"views": cache.views, **{name: cache.content(name) for name in self.settings.captions}}
            for cache in self.caches
        ]
        settings = self.settings.identity()
        if not caches:
            settings["captions"] = [CaptionSource.parse(source).identity() for source in self.settings.captions]
        found = {"settings": settings, "steps": self.steps, "data": self.dataset.content, "caches": caches}
        whole: dict[str, Any] = json.loads(json.dumps({**found, "student": self.config, "initial": self.initial}))
        return whole

    def facts(self) -> dict[str, Any]:
        """What the run is about, for people to read."""
        teachers = [
            {
                "name": cache.teacher.name,
                "model": cache.teacher.spec,
                "fingerprint": cache.teacher.fingerprint,
                "embed_dim": cache.teacher.embed_dim,
                "logit_scale": cache.teacher.logit_scale,
            }
            for cache in self.caches
        ]
        return {
            "student": {"name": self.settings.student, "parameters": self._sizes},
            "dataset": {"name": self.dataset.name, "samples": len(self.dataset), "content": self.dataset.content},
            "teachers": teachers,
            "steps": self.steps,
            "warmup": self.settings.optimiser.warmup_steps(self.steps),
            "steps_per_epoch": self.order.steps_per_epoch,
            "device": self.device.type,
            "processes": self.ranks.size,
        }

    def cached_targets(self, batch: Batch) -> Targets:
        """The caches' embeddings of the batch's own views and captions."""
        sets = {}
        for captions in self.settings.captions if self.caches else ():
            found = []
            for cache, rows in zip(self.caches, batch.teachers, strict=True):
                text = rows.text[captions]
                image = text.new_zeros(len(text), 0) if rows.image is None else rows.image
                scale = self.settings.teacher_scale or cache.teacher.logit_scale
                found.append(Embeddings(image, text, scale, cache.teacher.logit_bias or 0.0))
            sets[captions] = tuple(found)
        ragged = self.settings.join == "none" and any(cache.missing for cache in self.caches)
        return Targets(sets, batch.taught, ragged)

    def weights(self, step: int) -> dict[str, float]:
        """The losses' weights at `step` (from 0)."""
        return {name: term.at(step / max(1, self.steps - 1)) for name, term in self.terms.items()}

    def step(self, batch: Batch, targets: TargetsOf | None = None) -> dict[str, Tensor]:
        """One optimiser step on a batch; returns loss, its terms, gradient norm and logit scale as 0-d tensors."""
        settings = self.settings
        for group in self.optimiser.param_groups:
            if group.get("course", True):
                group["lr"] = learning_rate(batch.step, self.steps, settings.optimiser)
        if self.pruning:
            self.pruning.begin(batch.step)
        values = self._gradients(
            batch, (targets or self.cached_targets)(batch), self.weights(batch.step), self.scaler.scale
        )
        if self.pruning:
            values |= self.pruning.figures(batch.step)
            self.pruning.add_gradients(batch.step, self.scaler.scale)
        self.scaler.unscale_(self.optimiser)
        norm = clip_gradients(self._trained, settings.optimiser.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.pruning:
            self.pruning.after_step()
        if settings.student_scale is None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, float(np.log(settings.max_scale)))
        if self.average is not None:
            self.average.update_parameters(self.model)
            if self.pruning:
                self.pruning.share(self.average.module)
        return {**values, "grad_norm": norm.detach(), "logit_scale": self.model.logit_scale.detach().exp()}

    @property
    def delivered(self) -> Any:
        """The open_clip module that the run is for: the average of the weights if one is kept."""
        return self.model if self.average is None else self.average.module

    def finished(self) -> tuple[Any, ModelConfig]:
        """What is saved: `delivered` with its config; of a pruning run the dense model that it comes to."""
        return materialise(self.delivered, self.config) if self.pruning else (self.delivered, self.config)


def _check_captioned(settings: RunSettings, dataset: Dataset) -> None:
    """Every loss here is of images and captions: all empty, these would teach that any image fits any text."""
    own = "txt" in settings.captions or settings.join == "none"
    if own and not dataset.captioned:
        raise UserError(
            "this dataset has no captions: its list had none, and a student learns from images with captions",
            where=settings.shards,
            do="Give captions made elsewhere: `clipstill cache build --captions table:PATH.parquet#COLUMN`, then "
            "--cache CACHE --captions table-COLUMN",
        )


def _open_caches(settings: RunSettings, dataset: Dataset) -> list[TeacherCache]:
    if settings.cache is None:
        return []
    join = Join(policy=settings.join, limit=settings.join_limit)
    names = settings.teachers or teacher_names(Folder(settings.cache))
    if len(names) > 1 and not settings.teachers:
        raise UserError(
            f"several teachers: {', '.join(names)}", where=settings.cache, do="Choose with --teacher NAME, repeatable"
        )
    caches = [TeacherCache.open(settings.cache, dataset, name, join) for name in names or (None,)]
    for cache in caches:
        for captions in settings.captions:
            if cache.views or captions not in cache.captions:
                cache.require(captions)
    if settings.text_tower == "cache" and settings.join == "none":
        raise UserError(
            "samples without a teacher have no text embeddings, and there is no text tower",
            where="--join none",
            do="Use --join skip",
        )
    return caches


def _rows(dataset: Dataset, caches: list[TeacherCache]) -> list[int | np.ndarray]:
    """For each shard how many samples take part, or which."""
    lacking = [cache.kept for cache in caches if cache.missing]
    if not lacking:
        return [shard.count for shard in dataset.shards]
    rows = lacking[0]
    for others in lacking[1:]:
        rows = [np.intersect1d(here, there) for here, there in zip(rows, others, strict=True)]
    return list(rows)


def _check_batch(settings: RunSettings, ranks: Ranks, order: Order) -> None:
    if not order.steps_per_epoch:
        raise UserError(
            f"{order.samples} samples do not fill one batch of {settings.batch_size}",
            where=settings.shards,
            do="Use a smaller --batch-size",
        )
    if settings.batch_size % (ranks.size * settings.micro_batches):
        raise UserError(
            f"a batch of {settings.batch_size} cannot be cut evenly for {ranks.size} processes with "
            f"{settings.micro_batches} micro-batches each",
            where="--batch-size",
            do="Choose a multiple of their product",
        )


def _weights_digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
