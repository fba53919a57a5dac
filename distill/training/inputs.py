"""What a run reads: its caches, which samples take part, and in which order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from distill.data.by_score import Repeats, pair_scores
from distill.data.mixture import Mixture
from distill.data.order import Order
from distill.settings import RunSettings
from shards import Dataset, UserError, seed64
from teacher_cache.settings import Join
from teacher_cache.several import Cache, open_caches


def check_captioned(settings: RunSettings, dataset: Dataset) -> None:
    """Every loss here is of images and captions: all empty, these would teach that any image fits any text."""
    own = "txt" in settings.captions or settings.join == "none"
    if own and not dataset.captioned:
        raise UserError(
            "this dataset has no captions: its list had none, and a student learns from images with captions",
            where=str(dataset.folder),
            do="Give captions made elsewhere: `clipstill cache build --captions table:PATH.parquet#COLUMN`, then "
            "--cache CACHE --captions table-COLUMN",
        )


def caches_of(settings: RunSettings, datasets: list[Dataset]) -> list[Cache]:
    if not settings.cache:
        return []
    join = Join(policy=settings.join, limit=settings.join_limit)
    caches = open_caches(settings.cache, datasets, settings.teachers, join)
    names = [cache.teacher.name for cache in caches]
    for name in settings.teacher_scale if isinstance(settings.teacher_scale, Mapping) else ():
        if name not in names:
            told = f"{name} is none of the teachers"
            raise UserError(told, where="--teacher-scale", do=f"Use {' or '.join(names)}")
    from_images = settings.image_tower == "cache"
    for cache in caches:
        if from_images and not cache.views:
            raise UserError("this teacher embedded captions only", where=str(cache.folder), do="Choose another teacher")
        for captions in settings.captions:
            # Beside images that the cache embedded, captions may be the shards' own.
            if not (from_images and not cache.captions) and (cache.views or captions not in cache.captions):
                cache.require(captions)
    for tower in ("image", "text"):
        if getattr(settings, f"{tower}_tower") == "cache" and settings.join == "none":
            raise UserError(
                f"samples without a teacher have no {tower} embeddings, and there is no {tower} tower",
                where="--join none",
                do="Use --join skip",
            )
    return caches


def cached_width(settings: RunSettings, caches: list[Cache]) -> int:
    """Of the embeddings that stand for images; 0 where none do."""
    if settings.image_tower == "own":
        return 0
    if len(caches) > 1:
        raise UserError(
            f"{len(caches)} teachers' image embeddings for one image tower", where="--teacher", do="Choose one"
        )
    width: int = caches[0].teacher.embed_dim
    # What the student is built from decides its width; a head bridges another.
    return width


def rows_of(dataset: Dataset, caches: list[Cache]) -> list[int | np.ndarray]:
    """For each shard how many samples take part if all do, else which."""
    rows: list[int | np.ndarray] = [shard.count for shard in dataset.shards]
    for cache in caches:
        for place, kept in enumerate(cache.kept) if cache.missing else ():
            here = rows[place]
            if not isinstance(kept, int):
                rows[place] = kept if isinstance(here, int) else here & kept
    return rows


def scores_of(
    settings: RunSettings, caches: list[Cache], rows: list[int | np.ndarray]
) -> list[npt.NDArray[np.float32]] | None:
    """For each shard what the teachers say of its rows; None where nothing goes by it."""
    if settings.by_score is None:
        return None
    own = [np.arange(part) if isinstance(part, int) else np.flatnonzero(part) for part in rows]
    return pair_scores(caches, settings.captions[0], own)


def order_of(
    settings: RunSettings,
    datasets: list[Dataset],
    rows: list[int | np.ndarray],
    scores: list[npt.NDArray[np.float32]] | None,
) -> Order | Mixture:
    orders, first = [], 0
    for number, dataset in enumerate(datasets):
        part = slice(first, first + len(dataset.shards))
        first = part.stop
        seed = settings.seed if len(datasets) == 1 else seed64("dataset", settings.seed, number)
        repeats = None
        if settings.by_score is not None and scores is not None:
            repeats = Repeats(scores[part], settings.by_score, seed)
        orders.append(Order(rows[part], settings.dealt, seed, repeats=repeats))
    if len(orders) == 1:
        return orders[0]
    mixture = Mixture(orders, settings.weights_in_order(), settings.seed)
    for shards, weight, share in zip(settings.shards, settings.weights_in_order(), mixture.shares, strict=True):
        if not share:
            told = f"with the weight {weight:g} no epoch shows a sample of {shards}"
            raise UserError(told, where="--weight", do="Raise it, or leave the dataset out")
    return mixture
