"""What a build will cost, said before it runs: bytes on disk, hours of the accelerator, and when it pays."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass

import torch

from shards import Dataset, UserError
from shards.executor import Executor
from teacher_cache.building.batch_size import find_batch_size
from teacher_cache.building.forward import BatchedTeacher, embed_views
from teacher_cache.building.settings import BuildSettings
from teacher_cache.captions import check_captioned
from teacher_cache.dtypes import row_bytes
from teacher_cache.teachers import load_teacher
from teacher_cache.views import ViewPolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TeacherCost:
    """One teacher: `image_rate` and `text_rate` are forwards a second on one device, measured with decoding."""

    name: str
    device: str
    embed_dim: int
    batch_size: int
    image_rate: float
    text_rate: float


@dataclass(frozen=True)
class CachePlan:
    """`bytes` on disk, `seconds` of one device, for `samples` samples; what `teachers` were measured at.

    `online_seconds`: what the same teachers would take beside the training of that many students, one forward of an
    image and a caption for each sample and epoch. `break_even` is the number of epochs x students from which on the
    cache is cheaper.
    """

    samples: int
    views: int
    captions: int
    bytes: int
    seconds: float
    online_seconds: float
    break_even: int
    teachers: tuple[TeacherCost, ...]


def plan_cache(settings: BuildSettings, executor: Executor, *, passes: int = 1, budget: float = 60.0) -> CachePlan:
    """Measure each teacher for a part of `budget` seconds on samples of the dataset; nothing is written.

    `passes` is epochs x students of the training to come.
    Raises `UserError` for a dataset or teacher that cannot be loaded.
    """
    if passes < 1:
        raise UserError(f"{passes} passes over the dataset", do="Give at least one epoch and one student")
    dataset = Dataset.open(settings.shards)
    if settings.towers != "image":
        check_captioned(dataset, settings.captions)
    log.info("measuring for about %g seconds, after loading and trying batch sizes", budget)
    with contextlib.closing(executor):
        costs = tuple(
            executor.once(_measure, settings, number, budget / len(settings.teachers))
            for number in range(len(settings.teachers))
        )
    samples = len(dataset)
    captions = sum(source.count for source in settings.captions)
    # Keys: once a layer, about as long as the first.
    key = len(dataset.shards[0].keys[0]) + 4 if dataset.shards[0].count else 4
    texts = _text_bytes(settings, dataset)
    views_bytes = captions_bytes = 0.0
    build = online = 0.0
    for cost in costs:
        stored = row_bytes(settings.dtype, cost.embed_dim)
        if cost.image_rate:
            views_bytes += settings.views * (stored + _params_bytes(settings)) + key
            build += settings.views / cost.image_rate
            online += 1 / cost.image_rate
        if cost.text_rate:
            captions_bytes += captions * stored + key * len(settings.captions) + texts
            build += captions / cost.text_rate
            online += 1 / cost.text_rate
    return CachePlan(
        samples,
        settings.views,
        captions,
        int(samples * (views_bytes + captions_bytes)),
        samples * build,
        samples * online * passes,
        math.ceil(build / online - 1e-9),  # not one more for a rounded division
        costs,
    )


def _text_bytes(settings: BuildSettings, dataset: Dataset) -> float:
    """Of a sample's captions that layers keep themselves, by the first thousand."""
    shard = next(shard for shard in dataset.shards if shard.count)
    rows = range(min(shard.count, 1000))
    kept = [texts for source in settings.captions if source.stored for texts in source.texts(shard, rows)]
    return sum(len(text.encode()) + 4 for texts in kept for text in texts) / len(rows)


def _params_bytes(settings: BuildSettings) -> int:
    policy = ViewPolicy(kind="centre") if settings.policy == "evaluation" else settings.policy
    return policy.dtype.itemsize


def _measure(settings: BuildSettings, number: int, budget: float) -> TeacherCost:
    """Runs where a worker would."""
    spec = settings.teachers[number].spec
    size = settings.batch_size or find_batch_size(spec, settings.forward, settings.towers)
    teacher = load_teacher(spec, settings.forward, settings.towers)
    runner = BatchedTeacher(teacher, size, pad=settings.forward.compile)
    dataset = Dataset.open(settings.shards)
    shard = next(shard for shard in dataset.shards if shard.count)
    device = torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else teacher.device.type
    image_rate = text_rate = 0.0
    if teacher.image_size is not None and settings.towers != "text":
        policy = ViewPolicy(kind="centre") if settings.policy == "evaluation" else settings.policy
        indices = range(settings.views)
        rows = max(1, size // settings.views)
        embed_views([(runner, settings.dtype)], shard, policy, indices, range(min(shard.count, rows)))
        done, began = 0, time.monotonic()
        while done == 0 or time.monotonic() - began < budget * 0.8:
            # More and more, so that decoding runs ahead as it will.
            rows = min(shard.count, rows * 2 if time.monotonic() - began < budget * 0.2 else rows)
            embed_views([(runner, settings.dtype)], shard, policy, indices, range(rows))
            done += rows * settings.views
        image_rate = done / (time.monotonic() - began)
    if teacher.has_text and settings.towers != "image":
        texts = [shard.caption(row) for row in range(min(shard.count, size))]
        runner.texts(texts)
        done, began = 0, time.monotonic()
        while done == 0 or time.monotonic() - began < budget * 0.1:
            runner.texts(texts)[0, 0].item()
            done += len(texts)
        text_rate = done / (time.monotonic() - began)
    return TeacherCost(settings.teachers[number].name, device, teacher.embed_dim, size, image_rate, text_rate)
