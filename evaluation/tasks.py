"""What a set asks of a model: labels, captions, pairs. Images go by their places, from 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from evaluation.prompts import Prompts

Places = npt.NDArray[np.int64]

FEW = 5
"""Top-5 of fewer classes than this says nothing."""


@dataclass(frozen=True)
class Classification:
    """Which of the classes an image is: `labels` (n,). `groups`: by name (n,), of each image, as DataComp asks."""

    prompts: Prompts
    labels: Places
    groups: Mapping[str, Places] = field(default_factory=dict)


@dataclass(frozen=True)
class MultiLabel:
    """Which of the classes are on an image: `labels` (n, C) bool."""

    prompts: Prompts
    labels: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Retrieval:
    """Captions (m) and the image that each describes, `image_of` (m,).

    With `equal_is_right` (the default of datasets from the web) images whose captions are the same string are right
    answers to each other; published protocols know no such thing.
    """

    captions: tuple[str, ...]
    image_of: Places
    equal_is_right: bool = False


@dataclass(frozen=True)
class Matching:
    """Instances: `images` (k, I) places, `captions` k lists of C texts. In each the i-th image and text go together."""

    images: Places
    captions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Association:
    """WinoGAViL's (Bitton et al. 2022): which candidates a cue goes with; k of each, ragged."""

    cues: tuple[str, ...]
    candidates: tuple[Places, ...]
    right: tuple[npt.NDArray[np.bool_], ...]


Task = Classification | MultiLabel | Retrieval | Matching | Association

_RECALLS = tuple(f"{way}/R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))


def figures_of(task: Task) -> tuple[str, ...]:
    """The figures of a task by which models can be ranked: more is better."""
    if isinstance(task, Classification):
        return ("top1", *(["top5"] if len(task.prompts.names) >= FEW else []), "mean_per_class")
    if isinstance(task, MultiLabel):
        return ("mAP",)
    if isinstance(task, Retrieval):
        return (*_RECALLS, "mean_R@1")
    if isinstance(task, Matching):
        return ("text",) if task.images.shape[1] == 1 else ("text", "image", "group")
    return ("jaccard",)
