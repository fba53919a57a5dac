"""What a whole job will take, from a list to a student: requests, bytes, hours and money, by numbers that users know.

Arithmetic alone; nothing is measured here. Rates come from a small run of one's own (`ingest`'s progress line, `cache
plan`, a run's log) or from `make bench-*`; what is not given is not guessed: its hours are left open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

from annotated_types import Ge

from shards.errors import UserError
from shards.settings import option, settings
from teacher_cache.dtypes import Dtype, row_bytes

PRICES: Mapping[str, str] = {
    "core-hour": "a core for an hour",
    "gpu-hour": "a GPU for an hour",
    "gb-month": "a GB (10^9 bytes) stored for a month",
    "gb-in": "a GB from the web",
    "gb-out": "a GB read from the store",
    "put": "1,000 writes and listings of the store",
    "get": "1,000 reads of the store",
}

_UPLOADED_WHOLE, _PART = 100 << 20, 50 << 20
"""Bytes up to which s3fs uploads a file by one request, and of a part of a larger one."""
_LISTED = 1000
"""Names that a store lists by one request."""
_INDEX, _LEDGER = 70, 150
"""Bytes of a sample in its shard's index, and of a row in the shard's ledger."""
_TAR = 3 * 512 + 512 + 2 * 512
"""Of a sample in a tar beside its image: three heads, half a block of padding on average, caption and metadata."""
_LAYER = 90
"""Of a sample in a layer of the cache beside its embeddings: its key, and how the views were made."""

_GPUS_A_MACHINE = 8


@settings
class CostSettings:
    """What is to be done, on what, at which rates and prices.

    Rates are of one core or one GPU. Everything of money is in whatever currency the prices are.
    """

    rows: Annotated[float, option("rows of the list, as in 400e6", "N", ge=1)]
    found: Annotated[float, option("the share of rows that become samples; lists rot", "SHARE", gt=0, le=1)] = 0.8
    answer_kb: Annotated[float, option("kB (1,000 bytes) of what an image's URL answers", "KB", gt=0)] = 250.0
    image_kb: Annotated[float, option("kB of an image as it is stored", "KB", gt=0)] = 20.0
    shard_size: Annotated[int, option("rows a shard", "N", ge=1)] = 10_000
    attempts: Annotated[float, option("requests a URL on average, with further tries", "N", ge=1)] = 1.1
    cores: Annotated[int, option("cores that download", "N", ge=1, section="machines")] = 16
    gbit: Annotated[float, option("of all machines together to the web, in Gbit/s", "G", gt=0)] = 10.0
    gpus: Annotated[int, option("GPUs that run the teacher, and train", "N", ge=1)] = 8
    ingest_rate: Annotated[
        float | None,
        option("samples/s of a core, downloads and all", "R", gt=0, section="rates"),
    ] = None
    teacher_rate: Annotated[
        float | None, option("images/s of a GPU, all teachers one after the other, as `cache plan` says", "R", gt=0)
    ] = None
    student_rate: Annotated[float | None, option("samples/s of a GPU in training, as a run's log says", "R", gt=0)] = (
        None
    )
    views: Annotated[int, option("views an image in the cache", "K", ge=1, section="what is made")] = 8
    captions: Annotated[int, option("captions an image in the cache, each a layer", "N", ge=0)] = 1
    width: Annotated[int, option("of the teachers' embeddings, all together", "D", ge=1)] = 768
    dtype: Annotated[Dtype, option("how they are stored")] = "float16"
    epochs: Annotated[float, option("of each student", "N", gt=0)] = 32.0
    students: Annotated[int, option("students", "N", ge=1)] = 1
    price: Annotated[
        Mapping[str, Annotated[float, Ge(0)]],
        option(
            f"{'; '.join(f'{name}: {about}' for name, about in PRICES.items())}; repeatable",
            "NAME=X",
            section="prices",
        ),
    ] = field(default_factory=dict)
    months: Annotated[float, option("that shards and cache are kept", "N", ge=0)] = 1.0

    def __post_init__(self) -> None:
        for name in self.price:
            if name not in PRICES:
                raise UserError(f"there is no price {name!r}", where="--price", do=f"Use {', '.join(PRICES)}")

    @property
    def samples(self) -> int:
        return round(self.rows * self.found)

    @property
    def shards(self) -> int:
        return math.ceil(self.rows / self.shard_size)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Of a stage: requests to the web and to a store, bytes that cross and that stay, hours of its machines, money.

    `hours` by the clock, None where its rate was not given; `bound` is what sets them. `money` is None where its hours
    are open, or nothing of it has a price.
    """

    name: str
    web: int = 0
    puts: int = 0
    gets: int = 0
    down: float = 0.0
    read: float = 0.0
    stored: float = 0.0
    hours: float | None = None
    bound: str = ""
    money: float | None = None


def costs(given: CostSettings) -> tuple[StageCost, ...]:
    """Of ingest, the cache, training, and of keeping what was made."""
    return _ingest(given), _cache(given), _training(given), _keeping(given)


def _ingest(given: CostSettings) -> StageCost:
    """Of a shard are written tar, index, ledger, statistics, record, and a note that it has begun; it is listed twice
    who else is at it; the run's lease is looked at and read, and in the end the record is.
    """
    samples = given.samples / given.shards
    tar = 10_240 + samples * (given.image_kb * 1e3 + _TAR)
    down = given.samples * given.answer_kb * 1e3
    hours, bound = None, ""
    if given.ingest_rate is not None:
        computing = given.samples / (given.ingest_rate * given.cores) / 3600
        hours, bound = max((computing, "cores"), (down * 8 / (given.gbit * 1e9) / 3600, "network"))
    cost = StageCost(
        name="ingest",
        web=round(given.rows * given.attempts),
        puts=given.shards * (_uploads(tar) + 7) + _listings(5 * given.shards),
        gets=given.shards * 3,
        down=down,
        stored=given.shards * tar + given.samples * _INDEX + given.rows * _LEDGER,
        hours=hours,
        bound=bound,
    )
    return _priced(given, cost, {"core-hour": None if hours is None else hours * given.cores, "gb-in": down / 1e9})


def _cache(given: CostSettings) -> StageCost:
    """Of a shard tar and index are read. Of each layer, one of views and one for each caption, are written a file, its
    record, and a note that it has begun; it is listed three times who else is at it; lease, file and record are looked
    at or read.
    """
    samples, layers = given.samples / given.shards, 1 + given.captions
    row = row_bytes(given.dtype, given.width)
    views, captions = samples * (given.views * row + _LAYER), samples * (row + _LAYER)
    hours = None
    if given.teacher_rate is not None:
        # A caption costs less than a view, and is counted as one.
        hours = given.samples * (given.views + given.captions) / (given.teacher_rate * given.gpus) / 3600
    shard = 10_240 + samples * (given.image_kb * 1e3 + _TAR + _INDEX)
    cost = StageCost(
        name="cache",
        puts=given.shards * (_uploads(views) + given.captions * _uploads(captions) + 5 * layers)
        + _listings(given.shards),
        gets=given.shards * (2 + 4 * layers),
        read=given.shards * shard,
        stored=given.shards * (views + given.captions * captions),
        hours=hours,
        bound="" if hours is None else "GPUs",
    )
    return _priced(given, cost, {"gpu-hour": None if hours is None else hours * given.gpus, "gb-out": cost.read / 1e9})


def _training(given: CostSettings) -> StageCost:
    """Shards and cache are copied once to each machine that trains, one machine's eight GPUs sharing a copy."""
    machines = math.ceil(given.gpus / _GPUS_A_MACHINE)
    ingested, cached = _ingest(given).stored, _cache(given).stored
    hours = None
    if given.student_rate is not None:
        hours = given.samples * given.epochs * given.students / (given.student_rate * given.gpus) / 3600
    cost = StageCost(
        name="training",
        gets=machines * given.shards * (3 + given.captions),
        read=machines * (ingested + cached),
        hours=hours,
        bound="" if hours is None else "GPUs",
    )
    return _priced(given, cost, {"gpu-hour": None if hours is None else hours * given.gpus, "gb-out": cost.read / 1e9})


def _keeping(given: CostSettings) -> StageCost:
    stored = _ingest(given).stored + _cache(given).stored
    cost = StageCost(name="keeping", hours=0.0)
    return _priced(given, cost, {"gb-month": stored / 1e9 * given.months})


def _uploads(size: float) -> int:
    """Requests that write a file: one, or its parts with their beginning and their end."""
    return 1 if size <= _UPLOADED_WHOLE else 2 + math.ceil(size / _PART)


def _listings(names: int) -> int:
    return math.ceil(names / _LISTED)


def _priced(given: CostSettings, cost: StageCost, amounts: Mapping[str, float | None]) -> StageCost:
    """With its money: None if an amount is open, or nothing of the stage has a price."""
    whole = {**amounts, "put": cost.puts / 1e3, "get": cost.gets / 1e3}
    asked = {name: amount for name, amount in whole.items() if name in given.price}
    if not asked or None in asked.values():
        return cost
    return replace(cost, money=sum(given.price[name] * (amount or 0.0) for name, amount in asked.items()))
