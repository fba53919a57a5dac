"""Which settings of a run exclude each other, beyond what a field says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shards.errors import UserError

if TYPE_CHECKING:
    from distill.settings import RunSettings


def check_towers(settings: RunSettings) -> None:
    """Raise `UserError` for what cannot be asked of towers that are locked, or that a cache stands for."""
    cached = [name for name in ("image", "text") if getattr(settings, f"{name}_tower") == "cache"]
    if settings.patch_mask and "image" in settings.lock:
        raise UserError("patches are masked in training, and the image tower is locked", do="Leave out one of them")
    if len(cached) == 2:
        raise UserError("both towers are from the cache, and nothing is left to be trained", do="Leave out one of them")
    if settings.image_head and settings.image_tower == "own":
        raise UserError(
            "a head on cached images needs these", where="--image-head", do="Give --image-tower cache, or leave it out"
        )
    for name in cached:
        if settings.evaluation is not None:
            raise UserError(
                f"a student without {'an' if name == 'image' else 'a'} {name} tower cannot be evaluated in the run",
                where="--eval",
                do="Leave it out",
            )
        if name in settings.lock and not settings.image_head:
            raise UserError(f"the {name} tower is from the cache: it is locked", where="--lock", do="Leave it out")
    if "image" in cached:
        for flag, given in (("--patch-mask", settings.patch_mask), ("--image-size", settings.image_size)):
            if given:
                raise UserError("no pixels are read with --image-tower cache", where=flag, do="Leave it out")
    if "text" in cached and settings.context_length:
        raise UserError("no captions are read with --text-tower cache", where="--context-length", do="Leave it out")


def check_super_batch(settings: RunSettings) -> None:
    """Raise `UserError` unless there is something to choose from, and a teacher to choose by."""
    if settings.super_batch is None:
        return
    where = "--super-batch"
    if settings.super_batch <= settings.batch_size:
        told = f"a super-batch of {settings.super_batch} leaves no choice for a batch of {settings.batch_size}"
        raise UserError(told, where=where, do="Give a larger one")
    if not settings.cache:
        raise UserError(
            "samples are chosen by the teacher's loss, and there is no teacher", where=where, do="Give --cache"
        )
    if settings.join == "none":
        raise UserError(
            "samples without a teacher cannot be chosen among", where=f"{where}, --join none", do="Use --join skip"
        )


def check_scores(settings: RunSettings) -> None:
    """Raise `UserError` unless every sample has a score to go by."""
    if settings.by_score is not None and settings.join == "none":
        where = f"--by-score {settings.by_score}, --join none"
        raise UserError("samples without a teacher have no score", where=where, do="Use --join skip")
