"""A live teacher as the target: what training from a cache is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from distill.data.batch import Batch
from distill.losses import Embeddings, Targets


class Teacher(Protocol):
    """What embeds: pixels (n, S, S, 3) uint8 and n texts → (n, D) of unit norm; `teacher_cache.teachers` has some."""

    logit_scale: float
    logit_bias: float | None

    def embed_images(self, pixels: Tensor) -> Tensor: ...
    def embed_texts(self, texts: Any) -> Tensor: ...


class LiveTeachers:
    """Batches whose targets are what teachers say now, of the very views and captions.

    They see `Batch.teacher_pixels` and captions; or, `as_student`, the student's own pixels and token ids, which spares
    them all other work. `scale`, of all of them, stands for their own logit scales.
    """

    def __init__(self, teachers: Sequence[Teacher], scale: float | None = None, *, as_student: bool = False) -> None:
        self._teachers, self._scale, self._as_student = teachers, scale, as_student

    def __call__(self, batch: Batch) -> Batch:
        """The batch with these targets."""
        pixels, texts = (batch.images, batch.tokens) if self._as_student else (_pixels(batch), batch.captions)
        images = [teacher.embed_images(pixels) for teacher in self._teachers]
        said = {
            captions: tuple(
                Embeddings(
                    image,
                    teacher.embed_texts(given),
                    self._scale or teacher.logit_scale,
                    teacher.logit_bias or 0.0,
                    checked=False,
                )
                for teacher, image in zip(self._teachers, images, strict=True)
            )
            for captions, given in texts.items()
        }
        return replace(batch, targets=Targets(said))


def _pixels(batch: Batch) -> Tensor:
    assert batch.teacher_pixels is not None, "the run was not made with a teacher_size"
    return torch.from_numpy(batch.teacher_pixels)
