"""Find the batch size at which a teacher is fastest on the device at hand."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from shards import UserError
from teacher_cache.building.forward import is_out_of_memory
from teacher_cache.teachers import Forward, Teacher, Towers, load_teacher

_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_TIGHT = (4, 2, 1)
_WORTH = 1.03
"""A larger batch has to be faster by this much: it costs memory, and delays the first result."""
_PATIENCE = 20.0
"""Seconds after which no larger size is tried; a teacher on a CPU may take long for each."""
_TEXT = "a photo of a small brown dog that runs over wet grass"


def find_batch_size(spec: str, forward: Forward, towers: Towers) -> int:
    """The smallest batch that no larger one beats by 3 %; what does not fit in memory is not considered.

    Measured on the image tower, of a text-only teacher on its texts.
    Raises `UserError` if not even one sample fits.
    """
    # Not compiled, which takes minutes for each size and changes little about which is best.
    teacher = load_teacher(spec, replace(forward, compile=False), towers)
    best, best_rate = 0, 0.0
    began = time.monotonic()
    for size in _SIZES:
        rate = _rate(teacher, size)
        if rate <= best_rate * _WORTH:
            break
        best, best_rate = size, rate
        if time.monotonic() - began > _PATIENCE:
            break
    if not best:
        best = next((size for size in _TIGHT if _rate(teacher, size)), 0)
    if not best:
        raise UserError(f"not even one sample fits into the memory of {teacher.device}", where=spec)
    return best


def _rate(teacher: Teacher, size: int) -> float:
    """Samples a second in batches of `size`: the best of a few, after one that does not count; 0 if it does not fit."""
    try:
        return _timed(teacher, size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0


def _timed(teacher: Teacher, size: int) -> float:
    texts = [_TEXT] * size
    side = 0 if teacher.towers == "text" else teacher.image_size or 0
    pixels = torch.zeros(size, side, side, 3, dtype=torch.uint8, device=teacher.device)
    seconds: list[float] = []
    began = time.monotonic()
    while len(seconds) < 3 or (time.monotonic() - began < 0.5 and len(seconds) < 20):
        start = time.monotonic()
        embeddings = teacher.embed_images(pixels) if side else teacher.embed_texts(texts)
        embeddings[0, 0].item()  # waits for the device
        seconds.append(time.monotonic() - start)
        if len(seconds) > 1 and seconds[-1] > 5:
            break
    return size / min(seconds[1:])
