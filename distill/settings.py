"""What the user chooses for a training run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clip_models import Precision
from distill.losses import LOSSES, LossShape
from distill.pruning.settings import PruneSettings
from shards import UserError
from teacher_cache.captions import CaptionSource
from teacher_cache.join import Join, Policy

Tower = Literal["image", "text"]

_WARMUP = 500
WARMUP_WITHIN = 0.1
"""Of a run: a longer warm-up has to be asked for."""


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """AdamW and the learning rate's course; the defaults are TinyCLIP's.

    `warmup` steps of linear ascent to `lr`, the share `warmup_within` of the run at most (None: 500, within a tenth);
    then by `schedule`: a half cosine down to `final_lr`; `constant`; or `wsd`,
    constant until the last `decay` of the run (a fraction), which descends linearly to `final_lr`. Weight decay is not
    applied to tensors of fewer than two dimensions (norms, biases, scales); losses' own parameters get
    `loss_weight_decay`. `clip_norm`: the global gradient norm is cut to it, 0 for no clipping. `ema`: the decay of an
    exponential moving average of the weights, which is what the run then delivers; None for none.
    """

    lr: float = 1e-3
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    warmup: int | None = None
    warmup_within: float = 1.0
    final_lr: float = 0.0
    decay: float = 0.1
    weight_decay: float = 0.2
    loss_weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float = 5.0
    ema: float | None = None

    def __post_init__(self) -> None:
        _one_of("schedule", self.schedule, ("cosine", "constant", "wsd"))
        for name in ("lr", "eps"):
            _refuse_unless(0 < getattr(self, name) < math.inf, name, getattr(self, name), "positive and finite")
        for name in ("warmup", "weight_decay", "loss_weight_decay", "clip_norm", "final_lr"):
            value = getattr(self, name)
            _refuse_unless(value is None or 0 <= value < math.inf, name, value, "0 or more")
        _refuse_unless(0 < self.warmup_within <= 1, "warmup_within", self.warmup_within, "above 0, at most 1")
        _refuse_unless(self.final_lr <= self.lr, "final_lr", self.final_lr, f"at most lr, {self.lr:g}")
        _refuse_unless(0 < self.decay <= 1, "decay", self.decay, "above 0, at most 1")
        _refuse_unless(len(self.betas) == 2, "betas", self.betas, "two numbers")
        _refuse_unless(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "from 0 to below 1")
        _refuse_unless(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "between 0 and 1")

    def warmup_steps(self, steps: int) -> int:
        """Of a run of so many steps."""
        wanted, within = (_WARMUP, WARMUP_WITHIN) if self.warmup is None else (self.warmup, self.warmup_within)
        return min(wanted, int(within * steps))


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """A loss's weight, and what its constructor is given.

    `weight` is a number, or its course over the run: points (through, weight) with `through` ascending from 0 (start)
    to 1 (end), straight lines between them and level beyond.
    """

    weight: float | tuple[tuple[float, float], ...] = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def at(self, through: float) -> float:
        """The weight when the fraction `through` of the run is done."""
        if isinstance(self.weight, int | float):
            return float(self.weight)
        before = self.weight[0]
        for point in self.weight:
            if through < point[0]:
                share = (through - before[0]) / (point[0] - before[0]) if point[0] > before[0] else 1.0
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]

    def check(self, name: str) -> None:
        """Raises `UserError` unless it can be a term of the loss `name`."""
        if name not in LOSSES:
            raise UserError(f"there is no loss {name!r}", where="--loss", do=f"Use {', '.join(LOSSES)}")
        if isinstance(self.weight, int | float):
            _refuse_unless(0 < self.weight < math.inf, f"the weight of {name}", self.weight, "positive and finite")
        else:
            through = [point[0] for point in self.weight]
            weights = [point[1] for point in self.weight]
            fine = through == sorted(through) and all(0 <= x <= 1 for x in through)
            fine = fine and all(0 <= weight < math.inf for weight in weights) and any(weights)
            _refuse_unless(fine, f"the weight of {name}", self.weight, "points of ascending 0 to 1 and weights of 0 up")
        known = [name for name in inspect.signature(LOSSES[name]).parameters if name != "shape"]
        for option in self.options:
            if option not in known:
                raise UserError(
                    f"the loss {name} has no option {option!r}", do=f"It takes {', '.join(known) or 'none'}"
                )
        LOSSES[name](LossShape(8, (8,)), **self.options)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Evaluation inside a run, on the dataset `shards` every `every` steps and at the end.

    Retrieval always; zero-shot if `classes` is given, a file as in `evaluation.read_classes`, with `label`, the
    metadata's field that names a sample's class. `best`: the figure by which the best checkpoint is kept, named as in
    the log (`eval/zero_shot/top1`, more is better); None for none.
    """

    shards: str
    every: int = 1000
    classes: str | None = None
    label: str | None = None
    best: str | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("every", "batch_size"):
            _refuse_unless(getattr(self, name) > 0, f"evaluation.{name}", getattr(self, name), "positive")
        figures = [f"eval/retrieval/{way}/R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
        figures += ["eval/zero_shot/top1", "eval/zero_shot/top5"] if self.classes else []
        if self.best is not None:
            _one_of("evaluation.best", self.best, tuple(figures))
        if (self.classes is None) != (self.label is None):
            raise UserError("zero-shot needs both classes and the label's field", do="Give both, or neither")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A whole training run; everything in it is written to the run folder and compared on resume.

    Data. `shards`, `cache` as in `Dataset.open`, `TeacherCache.open`. `teachers`: the folders in the cache to learn
    from, by default its only one. `captions`: the caption sets of a step; the loss is their mean. Without
    a cache they are sources as in `teacher_cache.captions`. `join` and
    `join_limit` say what becomes of samples that the cache does not have, as in `teacher_cache.join.Join`. `views`
    only without cached views.

    Student. `student` as in `create_student`; `initial`, a model spec as in `load_model`: start from its weights, by
    manual inheritance (`clip_models.inheritance`) where it is larger; what came from where is in `inheritance.json`.
    `text_tower="cache"`: the student has no text tower, the only teacher's text embeddings stand in for one, frozen.
    `prune`: automatic inheritance, the run learns which units to leave out and delivers what is left as a dense model.
    `lock`: towers that are not trained. `patch_mask`: the share of patches that the image tower (a ViT) does not see
    in training (MFD has 0.75).

    Loss. `losses` maps names of `LOSSES` to their terms, or to a weight alone. `teacher_scale`, `student_scale`: pin a
    logit scale to this multiplier; None leaves the teachers' own, and lets the student's be learned, at most
    `max_scale`.

    Length in `steps`, or else in `epochs`. `batch_size` is the global batch over all processes.

    How it is computed, which may change when a run is resumed. `micro_batches`: a process's part of the batch is run
    in so many pieces, which saves memory at the price of a second forward; the loss still sees the whole batch.
    `checkpoint_activations` and `compile` as in torch. `precision`: autocast of the student's forward; fp16 scales the
    loss.

    Record. A log line every `log_every` steps, a checkpoint every `checkpoint_every`, and whenever there was none for
    `checkpoint_minutes` (0: by steps alone), of which the newest `keep` stay; `wandb`: also log to this project.
    `explosion`: the run stops when its loss has grown by this factor, 0 for never.
    `recipe`: the name of the recipe that the settings began with; nothing is read from it.
    """

    shards: str
    out: str
    student: str
    cache: str | None = None
    teachers: tuple[str, ...] = ()
    captions: tuple[str, ...] = ("txt",)
    join: Policy = "error"
    join_limit: float = 0.01
    views: int = 1
    initial: str | None = None
    text_tower: Literal["own", "cache"] = "own"
    lock: tuple[Tower, ...] = ()
    patch_mask: float = 0.0
    prune: PruneSettings | None = None
    losses: Mapping[str, LossTerm | float] = field(default_factory=dict)
    teacher_scale: float | None = None
    student_scale: float | None = None
    max_scale: float = 100.0
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 256
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    precision: Precision = "fp32"
    micro_batches: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    evaluation: EvaluationSettings | None = None
    explosion: float = 10.0
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    checkpoint_minutes: float = 10.0
    keep: int = 2
    wandb: str | None = None
    recipe: str | None = None

    def __post_init__(self) -> None:
        if "://" in self.out:
            raise UserError("a run's folder must be on a local disk", where=self.out, do="Give a path")
        if (self.steps is None) == (self.epochs is None):
            raise UserError("a run's length is needed, once", do="Give --steps or --epochs")
        for name in _POSITIVE:
            value = getattr(self, name)
            _refuse_unless(value is None or 0 < value < math.inf, name, value, "positive and finite")
        _refuse_unless(
            self.explosion == 0 or 1 < self.explosion < math.inf, "explosion", self.explosion, "0 or above 1"
        )
        minutes = self.checkpoint_minutes
        _refuse_unless(0 <= minutes < math.inf, "checkpoint_minutes", minutes, "0 or more")
        _refuse_unless(0 <= self.patch_mask < 1, "patch_mask", self.patch_mask, "from 0 to below 1")
        _one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        _one_of("text_tower", self.text_tower, ("own", "cache"))
        for tower in self.lock:
            _one_of("lock", tower, ("image", "text"))
        _refuse_unless(bool(self.captions), "captions", self.captions, "at least one caption set")
        for name in ("teachers", "captions", "lock"):
            values = getattr(self, name)
            _refuse_unless(len(set(values)) == len(values), name, ", ".join(values), "without repetition")
        if self.patch_mask and "image" in self.lock:
            raise UserError("patches are masked in training, and the image tower is locked", do="Leave out one of them")
        _refuse_unless(self.max_scale >= 1, "max_scale", self.max_scale, "1 or more")
        Join(policy=self.join, limit=self.join_limit)
        if self.cache is None:
            self._check_without_cache()
        if self.prune is not None and self.evaluation is not None and self.evaluation.best is not None:
            raise UserError(
                "the best checkpoint of a pruning run would be an early one, with little left out",
                where="--best",
                do="Leave it out: the run delivers its last step",
            )
        if self.evaluation is not None and self.text_tower == "cache":
            raise UserError(
                "a student without a text tower cannot be evaluated in the run", where="--eval", do="Leave it out"
            )
        for name, term in self.terms().items():
            term.check(name)
            if self.cache is None and LOSSES[name].needs_teacher:
                raise UserError(f"the loss {name!r} needs a teacher", where="--loss", do="Give --cache")

    def _check_without_cache(self) -> None:
        given = {
            "joins shards with a cache": self.join != "error",
            "is a teacher's scale": self.teacher_scale is not None,
            "names teachers": bool(self.teachers),
            "is a text tower from the cache": self.text_tower == "cache",
        }
        for what, is_given in given.items():
            if is_given:
                raise UserError(f"something here {what}, and there is no cache", do="Give --cache")
        for source in self.captions:
            CaptionSource.parse(source)

    def terms(self) -> dict[str, LossTerm]:
        """The losses with the default filled in: affinity mimicking from a cache, else plain CLIP."""
        default = "affinity" if self.cache and self.text_tower == "own" else "contrastive"
        given = self.losses or {default: 1.0}
        return {name: term if isinstance(term, LossTerm) else LossTerm(weight=term) for name, term in given.items()}

    def identity(self) -> dict[str, Any]:
        """What decides the trained weights, apart from data, cache and student, which a run compares by content.

        What only affects logging, or how the same step is computed, is left out.
        """
        fields = asdict(self)
        for name in _ELSEWHERE:
            del fields[name]
        fields["losses"] = {name: asdict(term) for name, term in self.terms().items()}
        return fields


_POSITIVE = (
    "steps",
    "epochs",
    "batch_size",
    "views",
    "micro_batches",
    "log_every",
    "checkpoint_every",
    "keep",
    "teacher_scale",
    "student_scale",
    "max_scale",
)
_ELSEWHERE = (
    "shards",
    "cache",
    "teachers",
    "student",
    "initial",
    "out",
    "micro_batches",
    "checkpoint_activations",
    "compile",
    "evaluation",
    "explosion",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "wandb",
    "recipe",
)


def _refuse_unless(fine: bool, name: str, value: object, must: str) -> None:
    if not fine:
        raise UserError(f"{name} is {value}, it must be {must}")


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    _refuse_unless(value in known, name, repr(value), f"one of {', '.join(known)}")
