"""What the loader hands out, and which view of a sample it shows when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from distill.losses import Targets
from shards import seed64
from teacher_cache.views import ViewPolicy


@dataclass(frozen=True)
class Batch:
    """One process's part of a global batch: b samples.

    `images`: (b, S, S, 3) uint8, in pinned memory where there is a GPU; S is 0 of a student that sees no pixels.
    `tokens`: (b, context) int64 by caption set, empty without a tokenizer. `targets`: what the teachers said of these
    views and captions, float32, in the order of the loader's caches. `captions` (by caption set), `keys` and
    `teacher_pixels` ((b, T, T, 3) uint8, the same views at another resolution, only if asked for) serve those who run a
    teacher beside it.
    """

    step: int
    images: Tensor
    tokens: dict[str, Tensor]
    targets: Targets
    keys: list[str]
    captions: dict[str, list[str]]
    teacher_pixels: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Views:
    """Which views a run trains on: `count` of them drawn by `policy`, in turn.

    In epoch e a sample shows view (e + hash(key)) mod count: all are used before any repeats.
    """

    policy: ViewPolicy
    count: int

    def index(self, key: str, epoch: int) -> int:
        return (epoch + seed64("view turn", key)) % self.count
