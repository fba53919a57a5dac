"""What the user chooses for a training run: what a field says here is what the command line offers, and its help.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import BeforeValidator, Field

from clip_models.precision import Precision
from distill.checks import check_scores, check_super_batch, check_towers
from distill.datasets import check_published, check_weights, weights_in_order
from distill.loss_term import LossTerm
from distill.losses import LOSSES, WITHOUT_TEACHER
from distill.pruning.settings import PruneSettings
from evaluation.settings import SetSettings
from shards.errors import UserError
from shards.settings import fields_of, flag_of, option, settings
from teacher_cache.captions import CaptionSource
from teacher_cache.settings import Policy

Tower = Literal["image", "text"]
Scale = Annotated[float, Gt(0)]
Beta = Annotated[float, Ge(0), Lt(1)]
Places = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]
"""One place, or several."""

_WARMUP = 500
WARMUP_WITHIN = 0.1
"""Of a run: a longer warm-up has to be asked for."""


@settings
class OptimiserSettings:
    """AdamW and the learning rate's course; the defaults are TinyCLIP's.

    `warmup` takes the share `warmup_within` of the run at most (None: 500, within a tenth). `schedule`: a half cosine
    down to `final_lr`; `constant`; or `wsd`, constant until the last `decay` of the run, which descends linearly to it.
    Tensors of fewer than two dimensions (norms, biases, scales) do not decay; losses' own parameters get
    `loss_weight_decay`. `clip_norm` is of the global gradient norm. `ema`: the decay of an exponential moving average.
    """

    lr: Annotated[float, option("peak learning rate", "LR", gt=0)] = 1e-3
    schedule: Annotated[Literal["cosine", "constant", "wsd"], option("wsd: constant, then down through --decay")] = (
        "cosine"
    )
    warmup: Annotated[
        int | None,
        option("steps of linear warm-up (500, or the recipe's, within a tenth of the run)", "N", ge=0),
    ] = None
    warmup_within: Annotated[float, Field(gt=0, le=1)] = 1.0
    final_lr: Annotated[float, option("where cosine and wsd end", "LR", ge=0)] = 0.0
    decay: Annotated[float, option("the last part of the run, for wsd", "SHARE", gt=0, le=1)] = 0.1
    weight_decay: Annotated[float, option("AdamW's, of matrices", "W", ge=0)] = 0.2
    loss_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: Annotated[tuple[Beta, Beta], option("AdamW's", "B")] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    clip_norm: Annotated[float, option("gradient norm limit, 0 for none", "G", ge=0)] = 5.0
    ema: Annotated[
        float | None,
        option("deliver weights averaged over steps; none: do not", "DECAY", none=True, gt=0, lt=1),
    ] = None

    def __post_init__(self) -> None:
        if self.final_lr > self.lr:
            raise UserError(f"final_lr is {self.final_lr}, it must be at most lr, {self.lr:g}")

    def warmup_steps(self, steps: int) -> int:
        """Of a run of so many steps."""
        wanted, within = (_WARMUP, WARMUP_WITHIN) if self.warmup is None else (self.warmup, self.warmup_within)
        return min(wanted, int(within * steps))


@settings
class EvaluationSettings(SetSettings):
    """Evaluation inside a run, on the sets `on` every `every` steps and at the end, in the run's precision.

    Sets, and what is said of them, are those of `clipstill evaluate` (`evaluation.sets`). `best`: the figure by which
    the best checkpoint is kept, named as in the log (`eval/zero_shot/top1`, of several sets `eval/SET/zero_shot/top1`;
    more is better); None for none.
    """

    on: Annotated[
        Places,
        Field(min_length=1),
        option("evaluate on this set in the run, and at its end; repeatable", "SET", flag="--eval"),
    ]
    every: Annotated[int, option("steps an evaluation", "N", flag="--eval-every", ge=1)] = 1000
    best: Annotated[str | None, option("keep the best checkpoint by it, as logged: eval/zero_shot/top1", "FIGURE")] = (
        None
    )
    batch_size: Annotated[int, Field(ge=1)] = 256

    def __post_init__(self) -> None:
        SetSettings.__post_init__(self)
        twice = next((value for value in self.on if self.on.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"{twice} is given twice", where="--eval", do="Give each once")


@settings
class RunSettings:
    """A whole training run; everything in it is written to the run folder and compared on resume.

    `shards`, `cache` as in `Dataset.open`, `TeacherCache.open`, the caches in the order of their datasets; without one
    `captions` are sources as in `teacher_cache.captions`. `weights`: by a dataset's path, or the last part of it, how
    many times an epoch shows its samples (1), as in `distill.data.mixture`. `datasets`: what a recipe was published on,
    by name in the order of `shards`, each with its weight. `student` as in `create_student`; `initial`
    as in `load_model`, by manual inheritance (`clip_models.inheritance`) where it is larger. With `text_tower="cache"`
    the only teacher's text embeddings stand in for one, frozen; with `image_tower` its image embeddings. `prune`:
    automatic inheritance. `losses` maps names of `LOSSES` to their terms, or to a weight alone. A scale that is None is
    the teachers' own, or is learned; those of some teachers go by their names. `batch_size` is of all processes.

    How it is computed may change when a run is resumed; `micro_batches` save memory at the price of a second forward.
    `evaluation`, logs and checkpoints are for the record. `recipe`: the name of the recipe that the settings began
    with; nothing is read from it.
    """

    shards: Annotated[Places, option("what `clipstill ingest` wrote; several train one student", flag="SHARDS")]
    out: Annotated[str, option("the run's folder", "RUN", section="")]
    student: Annotated[str, option("a name, timm/NAME, a .json file, or a model's folder", "MODEL", section="student")]
    cache: Annotated[
        Places,
        option(
            "what `clipstill cache build` wrote; repeatable, one for each of SHARDS, in their order",
            "CACHE",
            section="data and teachers",
        ),
    ] = ()
    weights: Annotated[
        Mapping[str, Annotated[float, Gt(0)]],
        option(
            "how many times an epoch shows the samples of one of several SHARDS (1); repeatable",
            "SHARDS=W",
            flag="--weight",
        ),
    ] = field(default_factory=dict)
    datasets: Mapping[str, Annotated[float, Gt(0)]] = field(default_factory=dict)
    teachers: Annotated[
        tuple[str, ...], option("a teacher in the cache; repeatable (its only one)", "NAME", flag="--teacher")
    ] = ()
    captions: Annotated[
        tuple[str, ...],
        option(
            "a caption set of each step; repeatable, the loss is their mean. Without a cache txt, json:FIELD*N or "
            "table:FILE#COLUMN*N",
            "SET",
            min_length=1,
        ),
    ] = ("txt",)
    by_score: Annotated[
        Literal["weight", "best-first"] | None,
        option(
            "show samples by the teachers' score of image and caption. weight: as often as it is high. best-first: the "
            "best quarter in the first epoch, all from the fourth on"
        ),
    ] = None
    join: Annotated[
        Policy,
        option(
            "when the cache is of other shards, or of a part: refuse; join by key and skip samples that it lacks; or "
            "train those without a teacher"
        ),
    ] = "error"
    join_limit: Annotated[float, option("refuse to skip more than this share", "SHARE", ge=0, le=1)] = 0.01
    views: Annotated[int, option("views an image, without a cache", "K", ge=1)] = 1
    initial: Annotated[
        str | None,
        option(
            "start from these weights: ARCH:TAG, ARCH:FILE or a folder; without --student that model goes on",
            "MODEL",
            section="student",
        ),
    ] = None
    text_tower: Annotated[Literal["own", "cache"], option("cache: the teacher's text embeddings stand in for one")] = (
        "own"
    )
    image_tower: Annotated[
        Literal["own", "cache"],
        option("cache: the teacher's image embeddings stand in for one (LiT), and no pixels are read"),
    ] = "own"
    image_head: Annotated[bool, option("train a linear map on these, to the student's width")] = False
    image_size: Annotated[int | None, option("see images of this size, not of the student's own", "PX", ge=1)] = None
    context_length: Annotated[
        int | None, option("see so many tokens of a caption, not the student's own number", "N", ge=3)
    ] = None
    lock: Annotated[tuple[Tower, ...], option("a tower that is not trained; repeatable")] = ()
    patch_mask: Annotated[float, option("of its patches that a ViT does not see in training", "SHARE", ge=0, lt=1)] = (
        0.0
    )
    prune: Annotated[PruneSettings | None, option("")] = None
    losses: Annotated[
        Mapping[str, LossTerm | float],
        option(
            f"{', '.join(LOSSES)}; repeatable, and then none of the recipe's. NAME=0:0,0.1:2000 is a weight that rises "
            "through the first tenth of the run",
            "NAME=WEIGHT",
            flag="--loss",
            section="losses",
        ),
    ] = field(default_factory=dict)
    teacher_scale: Annotated[
        Mapping[str, Scale] | Scale | None,
        option("the teachers' logit scale, or NAME=T that of one, repeatable; none: each has its own", "T"),
    ] = None
    student_scale: Annotated[
        float | None, option("the student's, pinned; none: it is learned", "T", none=True, gt=0)
    ] = None
    max_scale: Annotated[float, option("the most that a learned one may be", "T", ge=1)] = 100.0
    steps: Annotated[int | None, option("or optimiser steps", "N", section="length and optimiser", ge=1)] = None
    epochs: Annotated[float | None, option("passes over the dataset", "E", gt=0)] = None
    batch_size: Annotated[int, option("global batch", "B", ge=1)] = 256
    super_batch: Annotated[
        int | None,
        option("read so many samples a step, and train on the B with the highest student loss - teacher loss", "S"),
    ] = None
    optimiser: Annotated[OptimiserSettings, option("")] = field(default_factory=OptimiserSettings)
    precision: Annotated[Precision, option("of the student's forward", section="how it is computed")] = "fp32"
    micro_batches: Annotated[int, option("in so many pieces; the loss still sees the whole batch", "N", ge=1)] = 1
    checkpoint_activations: Annotated[bool, option("compute activations again instead of keeping them")] = False
    shard_optimiser: Annotated[bool, option("each process keeps its share of the optimiser's moments alone")] = False
    compile: Annotated[bool, option("torch.compile the student: minutes first, then faster")] = False
    evaluation: Annotated[EvaluationSettings | None, option("", section="evaluation, logs and checkpoints")] = None
    explosion: Annotated[float, option("stop when the loss has grown so much; 0: never", "FACTOR", ge=0)] = 10.0
    seed: Annotated[int, option("of weights and order", "N")] = 0
    log_every: Annotated[int, option("steps a log line", "N", ge=1)] = 10
    checkpoint_every: Annotated[int, option("steps a checkpoint", "N", ge=1)] = 500
    checkpoint_minutes: Annotated[
        float,
        option(
            "and a checkpoint whenever there was none for so long, which is the most that a kill loses; 0: never",
            "M",
            ge=0,
        ),
    ] = 10.0
    keep: Annotated[int, option("newest checkpoints that stay", "N", ge=1)] = 2
    wandb: Annotated[str | None, option("also log to this project of Weights & Biases", "PROJECT")] = None
    recipe: str | None = None

    def __post_init__(self) -> None:
        if "://" in self.out:
            raise UserError("a run's folder must be on a local disk", where=self.out, do="Give a path")
        if (self.steps is None) == (self.epochs is None):
            raise UserError("a run's length is needed, once", do="Give --steps or --epochs")
        if 0 < self.explosion <= 1:
            raise UserError(f"explosion is {self.explosion}, it must be 0 or above 1")
        for name in ("shards", "teachers", "captions", "lock"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                where = flag_of(name, fields_of(RunSettings)[name])
                raise UserError(f"{twice} is given twice", where=where, do="Give each once")
        check_towers(self)
        check_super_batch(self)
        check_scores(self)
        self._check_datasets()
        if not self.cache:
            self._check_without_cache()
        if self.prune is not None and self.evaluation is not None and self.evaluation.best is not None:
            raise UserError(
                "the best checkpoint of a pruning run would be an early one, with little left out",
                where="--best",
                do="Leave it out: the run delivers its last step",
            )
        for name, term in self.terms().items():
            term.check(name)
            if not self.cache and name not in WITHOUT_TEACHER:
                raise UserError(f"the loss {name!r} needs a teacher", where="--loss", do="Give --cache")

    def _check_datasets(self) -> None:
        if not self.shards:
            raise UserError("shards is empty, it must be a dataset or several", do="Give SHARDS")
        if self.cache and len(self.cache) != len(self.shards):
            raise UserError(
                f"{len(self.cache)} caches for {len(self.shards)} datasets",
                where="--cache",
                do="Give one for each, in their order",
            )
        check_weights(self.shards, self.weights)
        check_published(self.shards, self.datasets)

    def weights_in_order(self) -> tuple[float, ...]:
        """One for each of `shards`."""
        return weights_in_order(self.shards, self.weights, self.datasets)

    def check_batch(self, samples: int, processes: int) -> None:
        """Raise `UserError` unless an epoch of so many samples fills a batch, and so many processes can share one."""
        if samples < self.dealt:
            raise UserError(
                f"{samples} samples do not fill one batch of {self.dealt}",
                where=", ".join(self.shards),
                do=f"Use a smaller {'--super-batch' if self.super_batch else '--batch-size'}",
            )
        if self.dealt % processes:
            raise UserError(
                f"a super-batch of {self.dealt} cannot be cut evenly for {processes} processes",
                where="--super-batch",
                do="Choose a multiple of their number",
            )
        if self.batch_size % (processes * self.micro_batches):
            raise UserError(
                f"a batch of {self.batch_size} cannot be cut evenly for {processes} processes with "
                f"{self.micro_batches} micro-batches each",
                where="--batch-size",
                do="Choose a multiple of their product",
            )

    def _check_without_cache(self) -> None:
        given = {
            "joins shards with a cache": self.join != "error",
            "is a teacher's scale": self.teacher_scale is not None,
            "names teachers": bool(self.teachers),
            "goes by teachers' scores": self.by_score is not None,
            "is a text tower from the cache": self.text_tower == "cache",
            "is an image tower from the cache": self.image_tower == "cache",
        }
        for what, is_given in given.items():
            if is_given:
                raise UserError(f"something here {what}, and there is no cache", do="Give --cache")
        for source in self.captions:
            CaptionSource.parse(source)

    @property
    def dealt(self) -> int:
        """How many samples a step reads; it trains on `batch_size` of them."""
        return self.super_batch or self.batch_size

    def terms(self) -> dict[str, LossTerm]:
        """The losses with the default filled in: affinity mimicking from a cache, else plain CLIP."""
        own = self.text_tower == self.image_tower == "own"
        default = "affinity" if self.cache and own else "contrastive"
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
        fields["weights"] = self.weights_in_order()
        return fields


_ELSEWHERE = (
    "shards",
    "cache",
    "teachers",
    "student",
    "initial",
    "out",
    "micro_batches",
    "checkpoint_activations",
    "shard_optimiser",
    "compile",
    "evaluation",
    "explosion",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "wandb",
    "recipe",
    "datasets",
)

__all__ = ["WARMUP_WITHIN", "Beta", "EvaluationSettings", "LossTerm", "OptimiserSettings", "RunSettings", "Tower"]
