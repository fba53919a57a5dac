"""Evaluate a model on a set: embed its images once, and score every task of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clip_models import LoadedModel, Precision
from evaluation.embedding import Deal, Encoder
from evaluation.figures import Figure, intervals
from evaluation.matching import association, matching
from evaluation.retrieval import SHARED, retrieval
from evaluation.sets.base import EvaluationSet
from evaluation.sets.dataset import shared
from evaluation.tasks import Association, Classification, Matching, MultiLabel, Retrieval, Task
from evaluation.text_cache import TextCache
from evaluation.zero_shot import Answers, classification, several_labels
from shards.errors import UserError


@dataclass
class Sides:
    """What comparisons need of one task: images (n, D), classes or captions (m, D), and the answers, if it has such."""

    images: Tensor
    texts: Tensor
    answers: Answers | None = None


@dataclass
class Evaluation:
    """`result`: plain JSON values, percent. `figures`: those of it that are resampled, by `TASK/FIGURE`."""

    result: dict[str, Any]
    figures: dict[str, Figure]
    sides: dict[str, Sides] = field(default_factory=dict)


def evaluate(
    loaded: LoadedModel,
    evaluated: EvaluationSet,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    cache: TextCache | None = None,
    deal: Deal | None = None,
    limits: bool = True,
    progress: bool = False,
) -> Evaluation:
    """Embed every image with the model's own preprocessing and score it.

    The result is `{"samples": n, TASK: {FIGURE: value}, "intervals": {"TASK/FIGURE": [low, high]}, "speed": {...}}`.
    A dataset of ours has the tasks "zero_shot" (`top1`, `top5` from five classes on, `mean_per_class`, `classes`)
    and "retrieval" (see `recall`; `mean_R@1`, `shared_captions`). Accuracy and recall are in percent, the
    intervals hold 95 % of 1000 resamples of the images; without `limits` there are none. `speed` says whether loader
    or model was the limit. The model is moved to `device` and computes in its own dtype and `precision`; it must be
    in evaluation mode. `progress` is shown of what is long.

    Raises `UserError` if an image cannot be decoded, or labels turn out to be sorted wrongly.
    """
    encoder = Encoder(
        loaded,
        device,
        batch_size=batch_size,
        precision=precision,
        cache=cache,
        deal=deal,
        label=evaluated.name if progress else "",
    )
    # Texts first: what is wrong with them shows at once.
    texts = {name: _texts(task, encoder) for name, task in evaluated.tasks.items()}
    images, speed = encoder.images(evaluated.images)
    result: dict[str, Any] = {"samples": len(evaluated)}
    figures: dict[str, Figure] = {}
    sides: dict[str, Sides] = {}
    for name, task in evaluated.tasks.items():
        found, own, answers = _scored(task, images, texts[name], encoder, evaluated.name)
        result[name] = found
        figures |= {f"{name}/{figure}": value for figure, value in own.items()}
        text = texts[name]
        if text is not None:
            sides[name] = Sides(images, text, answers)
    if limits:
        result["intervals"] = intervals(figures, len(evaluated))
    result["speed"] = speed.in_words()
    return Evaluation(result, figures, sides)


def _texts(task: Task, encoder: Encoder) -> Tensor | None:
    if isinstance(task, Classification | MultiLabel):
        return encoder.classes(task.prompts)
    return encoder.texts(task.captions) if isinstance(task, Retrieval) else None


def _scored(
    task: Task, images: Tensor, texts: Tensor | None, encoder: Encoder, where: str
) -> tuple[dict[str, Any], dict[str, Figure], Answers | None]:
    figures: dict[str, Figure]
    if isinstance(task, Matching):
        figures = matching(task, images, encoder)
        return {name: figure.value for name, figure in figures.items()} | {"instances": len(task.images)}, figures, None
    if isinstance(task, Association):
        figures = association(task, images, encoder)
        return {name: figure.value for name, figure in figures.items()} | {"instances": len(task.cues)}, figures, None
    assert texts is not None
    if isinstance(task, Retrieval):
        if not len(task.captions):
            raise UserError("there is not a single caption", where=where, do="Give --no-retrieval")
        result, figures = retrieval(task, images, texts)
        result["captions"] = len(task.captions)
        if task.equal_is_right:
            result[SHARED] = shared(list(task.captions), task.image_of.tolist())
        return result, figures, None
    if isinstance(task, MultiLabel):
        figures, answers = several_labels(task, images, texts), None
    else:
        figures, answers = classification(task, images, texts, where)
    return {name: figure.value for name, figure in figures.items()} | {"classes": len(texts)}, figures, answers


__all__ = ["Evaluation", "evaluate"]
