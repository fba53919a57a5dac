"""One training run, opened: data, caches, student, losses, optimiser, and the step that moves them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clip_models import ModelConfig, square_side, tokenizer_for
from clip_models.measure import tower_sizes
from clip_models.precision import PRECISIONS
from distill.data.by_score import EPOCHS_TO_ALL
from distill.data.collate import scale_of
from distill.data.loader import Batch, Loader, Views
from distill.data.mixture import Mixture
from distill.losses import LOSSES, LossShape, WeightedSum
from distill.pruning.pruning import Pruning
from distill.settings import RunSettings
from distill.training.checkpoint import Parts, flatten, unflatten
from distill.training.inputs import cached_width, caches_of, check_captioned, order_of, rows_of, scores_of
from distill.training.optim import clip_gradients, collect, make_adamw, make_average, parameters
from distill.training.ranks import Ranks
from distill.training.schedule import learning_rate
from distill.training.step import Gradients
from distill.training.student import Student, make_student
from shards import Dataset, UserError, seed64
from teacher_cache.captions import CaptionSource
from teacher_cache.views import ViewPolicy

log = logging.getLogger(__name__)


class StepHook(Protocol):
    """What takes part in every step beside the losses, as pruning does: a module, which is a part of checkpoints.

    `groups`: of parameters for the optimiser, whose learning rate has no course. `begin` comes before the student's
    forward (steps count from 0). `after_backward` adds gradients of its own, `scaled` as the loss's are, and returns
    figures for the log, 0-d. `after_step` comes after the optimiser, with the average of the weights if one is kept.
    `finished` makes of the trained model what is delivered; `report` is what has become of it so far, for
    `RUN/HOOK.json`; `missed` says where that is not, at the end, what was asked for, and what to do.
    """

    def groups(self) -> Sequence[dict[str, Any]]: ...
    def begin(self, step: int) -> None: ...
    def after_backward(self, step: int, scaled: Callable[[Tensor], Tensor]) -> dict[str, Tensor]: ...
    def after_step(self, average: Any) -> None: ...
    def finished(self, model: Any, config: ModelConfig) -> tuple[Any, ModelConfig]: ...
    def report(self, model: Any) -> dict[str, Any]: ...
    def missed(self, report: Mapping[str, Any]) -> str | None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...


class Run:
    """Everything a step needs. `step` changes the student; nothing here touches the disk.

    `ranks`: which process of the run this is. `teacher_size` as in `Loader`, for a live teacher beside the run.
    Raises `UserError` for data, cache, student or losses that do not fit each other.
    """

    def __init__(self, settings: RunSettings, ranks: Ranks | None = None, *, teacher_size: int | None = None) -> None:
        self.settings = settings
        self.ranks = ranks or Ranks.join()
        self.device = self.ranks.device
        self.datasets = [Dataset.open(shards) for shards in settings.shards]
        for dataset in self.datasets:
            check_captioned(settings, dataset)
        self.dataset = Dataset.together(self.datasets)
        self.caches = caches_of(settings, self.datasets)
        self.model, self.config, self.inherited = make_student(settings, cached_width(settings, self.caches))
        self.model.to(self.device)
        self._sizes = tower_sizes(self.model)
        self.initial = _weights_digest(self.model) if settings.initial else None
        rows = rows_of(self.dataset, self.caches)
        self.order = order_of(settings, self.datasets, rows, scores_of(settings, self.caches, rows))
        settings.check_batch(self.order.samples, self.ranks.size)
        self.steps = settings.steps or max(1, round((settings.epochs or 0.0) * self.order.steps_per_epoch))
        if settings.by_score == "best-first" and self.steps <= (EPOCHS_TO_ALL - 1) * self.order.steps_per_epoch:
            told = "best-first comes to all samples in epoch %d, and this run has %.3g: it sees the best ones alone"
            log.warning(told, EPOCHS_TO_ALL, self.steps / self.order.steps_per_epoch)
        self.hooks = _hooks(settings, self.model, self.config, self.steps)
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
            image_size=None if settings.image_tower == "cache" else square_side(self.config, settings.student),
            caches=self.caches,
            captions=settings.captions,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            teacher_size=teacher_size,
            teacher_scale=settings.teacher_scale,
        )
        self.terms = settings.terms()
        self.loss = self._make_loss()
        self.student = Student(self.model, self.config, settings, self.device).to(self.device)
        self._trained = parameters([self.student, self.loss])
        if not self._trained:
            raise UserError("nothing is left to be trained", where="--lock", do="Lock one tower at most")
        groups = [group for hook in self.hooks.values() for group in hook.groups()]
        sharded = settings.shard_optimiser and self.ranks.size > 1
        self.optimiser = make_adamw(self.student, self.loss, settings.optimiser, groups, sharded=sharded)
        if settings.compile:
            self.student.compile()
        self._gradients = Gradients(
            self.student,
            self.loss,
            self.ranks,
            batch_size=settings.batch_size,
            dealt=settings.dealt,
            micro_batches=settings.micro_batches,
            text_from_cache=from_cache,
            image_from_cache=settings.image_tower == "cache",
            seed=lambda step, at: seed64("step", settings.seed, step, at) >> 1,
        )
        self.average = make_average(self.model, settings.optimiser.ema) if settings.optimiser.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=PRECISIONS[settings.precision].scaled)

    def _make_loss(self) -> WeightedSum:
        width = self.config["model_cfg"]["embed_dim"]
        shape = LossShape(width, tuple(cache.teacher.embed_dim for cache in self.caches))
        for cache in self.caches:
            needy = next((name for name in self.terms if LOSSES[name].needs_teacher), None)
            lacks = ("image", "captions") if not cache.views else ("text", "images") if not cache.captions else None
            if lacks and (needy or self.settings.super_batch):
                what = f"the loss {needy!r}" if needy else "choosing from a super-batch"
                raise UserError(
                    f"{what} needs {lacks[0]} embeddings, and this teacher embedded {lacks[1]} only",
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
        if not any(cache.captions for cache in self.caches):
            settings["captions"] = [CaptionSource.parse(source).identity() for source in self.settings.captions]
        data = [dataset.content for dataset in self.datasets]
        found = {"settings": settings, "steps": self.steps, "data": data, "caches": caches}
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
                "logit_scale": scale_of(cache, self.settings.teacher_scale),
            }
            for cache in self.caches
        ]
        return {
            "student": {"name": self.settings.student, "parameters": self._sizes},
            "dataset": {
                "name": self.dataset.name,
                "samples": len(self.dataset),
                "content": self.dataset.content,
                "parts": self._shares(),
            },
            "teachers": teachers,
            "steps": self.steps,
            "warmup": self.settings.optimiser.warmup_steps(self.steps),
            "steps_per_epoch": self.order.steps_per_epoch,
            "device": self.device.type,
            "processes": self.ranks.size,
        }

    def _shares(self) -> list[dict[str, Any]]:
        """Of several datasets how many samples each has, and how many an epoch shows."""
        if not isinstance(self.order, Mixture):
            return []
        weights = self.settings.weights_in_order()
        return [
            {"name": dataset.name, "samples": len(dataset), "weight": weight, "in_an_epoch": share}
            for dataset, weight, share in zip(self.datasets, weights, self.order.shares, strict=True)
        ]

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | StepHook]:
        """All that steps change, by its file in a checkpoint."""
        average = {} if self.average is None else {"average": self.average}
        return {"model": self.model, "loss": self.loss, "optimiser": self.optimiser, **average, **self.hooks}

    def collect(self) -> None:
        """Bring to the first process what `state` needs of others. Every process calls it."""
        collect(self.optimiser)

    def state(self) -> tuple[Parts, dict[str, Any]]:
        """What a run must have to go on from here: tensors by part, and what JSON can hold. `restore` takes both.

        It is the first process's, once all have called `collect`.
        """
        parts: dict[str, Mapping[str, Tensor]] = {}
        beside: dict[str, Any] = {}
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                parts[name], beside[name] = flatten(part)
            else:
                parts[name] = part.state_dict()
        return parts, {**beside, "scaler": self.scaler.state_dict()}

    def restore(self, parts: Parts, beside: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                unflatten(part, parts[name], beside[name])
            else:
                part.load_state_dict(parts[name])
        self.scaler.load_state_dict(beside["scaler"])

    def restore_delivered(self, parts: Parts) -> None:
        """Bring back no more than the student as it was delivered when `state` was taken."""
        if self.average is None:
            self.model.load_state_dict(parts["model"])
        else:
            self.average.load_state_dict(parts["average"])

    def weights(self, step: int) -> dict[str, float]:
        """The losses' weights at `step` (from 0)."""
        return {name: term.at(step / max(1, self.steps - 1)) for name, term in self.terms.items()}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step on a batch; returns loss, its terms, gradient norm and logit scale as 0-d tensors."""
        settings = self.settings
        for group in self.optimiser.param_groups:
            if group.get("course", True):
                group["lr"] = learning_rate(batch.step, self.steps, settings.optimiser)
        for hook in self.hooks.values():
            hook.begin(batch.step)
        values = self._gradients(batch, self.weights(batch.step), self.scaler.scale)
        for hook in self.hooks.values():
            values |= hook.after_backward(batch.step, self.scaler.scale)
        self.scaler.unscale_(self.optimiser)
        norm = clip_gradients(self._trained, settings.optimiser.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if settings.student_scale is None:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, float(np.log(settings.max_scale)))
        if self.average is not None:
            self.average.update_parameters(self.model)
        for hook in self.hooks.values():
            hook.after_step(None if self.average is None else self.average.module)
        return {**values, "grad_norm": norm.detach(), "logit_scale": self.model.logit_scale.detach().exp()}

    @property
    def delivered(self) -> Any:
        """The open_clip module that the run is for: the average of the weights if one is kept."""
        return self.model if self.average is None else self.average.module

    def finished(self) -> tuple[Any, ModelConfig]:
        """What is saved: `delivered` with its config, or what hooks make of it."""
        model, config = self.delivered, self.config
        for hook in self.hooks.values():
            model, config = hook.finished(model, config)
        return model, config

    def reports(self) -> dict[str, dict[str, Any]]:
        """What each hook has made of the student so far."""
        return {name: hook.report(self.delivered) for name, hook in self.hooks.items()}


def _hooks(settings: RunSettings, model: Any, config: ModelConfig, steps: int) -> dict[str, StepHook]:
    """By their names in checkpoints and in the run's folder."""
    if settings.prune is None:
        return {}
    if settings.prune.ramp > steps:
        raise UserError(
            f"a ramp of {settings.prune.ramp} steps does not end in {steps}",
            where="--prune-ramp",
            do="Shorten it: some steps after it are needed too",
        )
    return {"pruning": Pruning(model, config, settings.prune, settings.seed)}


def _weights_digest(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
