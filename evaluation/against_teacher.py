"""A student beside its teacher on one set: agreement, how alike their affinities are, what each class won."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evaluation.run import Evaluation, Sides
from evaluation.sets.base import EvaluationSet
from evaluation.tasks import Classification

_ROWS, _CELLS = 20_000, 1 << 22
"""At most so many images' affinities are ranked, so many similarities at a time."""
_MOST_TEXTS = 5000
"""Of more captions, so many evenly spread ones."""


def against_teacher(evaluated: EvaluationSet, student: Evaluation, teacher: Evaluation) -> dict[str, Any]:
    """By task: `rank_correlation`, the mean over images of Spearman's correlation between the student's and the
    teacher's similarities to the classes or captions; and of classification `agreement`, the share of images on which
    both choose the same class, in percent, with `gained` and `lost` in all and by class: how many images the student
    alone has right, and the teacher alone.
    """
    told: dict[str, Any] = {}
    for name, ours in student.sides.items():
        theirs = teacher.sides[name]
        found: dict[str, Any] = {"rank_correlation": rank_correlation(ours, theirs)}
        task = evaluated.tasks[name]
        if isinstance(task, Classification) and ours.answers is not None and theirs.answers is not None:
            one, other = ours.answers.chosen.numpy(), theirs.answers.chosen.numpy()
            found["agreement"] = 100.0 * float(np.mean(one == other))
            right, theirs_right = one == task.labels, other == task.labels
            gained = np.bincount(task.labels[right & ~theirs_right], minlength=len(task.prompts.names))
            lost = np.bincount(task.labels[~right & theirs_right], minlength=len(task.prompts.names))
            found |= {"gained": int(gained.sum()), "lost": int(lost.sum())}
            found["by_class"] = [
                {"class": label, "gained": int(won), "lost": int(gone)}
                for label, won, gone in zip(task.prompts.names, gained, lost, strict=True)
                if won or gone
            ]
        told[name] = found
    return told


def rank_correlation(ours: Sides, theirs: Sides) -> float | None:
    """The mean over images of Spearman's correlation, equal similarities sharing their mean rank; None without any.

    An image to which all texts are equally similar, by one of the two, has none.
    """
    rows = torch.linspace(0, len(ours.images) - 1, min(_ROWS, len(ours.images))).long()
    columns = torch.linspace(0, len(ours.texts) - 1, min(_MOST_TEXTS, len(ours.texts))).long()
    step = max(1, _CELLS // len(columns))
    found = []
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        ranked = [
            _ranks((side.images[block].double() @ side.texts[columns].double().T).numpy()) for side in (ours, theirs)
        ]
        centred = [part - part.mean(axis=1, keepdims=True) for part in ranked]
        norms = [np.sqrt((part**2).sum(axis=1)) for part in centred]
        both = norms[0] * norms[1]
        dots = (centred[0] * centred[1]).sum(axis=1)
        found.append(dots[both > 0] / both[both > 0])
    values = np.concatenate(found)
    return float(values.mean()) if len(values) else None


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks within each row, from 1; equal values have the mean of theirs."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    places = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    begins = np.ones(values.shape, bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = np.ones(values.shape, bool)
    ends[:, :-1] = begins[:, 1:]
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    last = np.minimum.accumulate(np.where(ends, places, values.shape[1])[:, ::-1], axis=1)[:, ::-1]
    ranked = np.empty(values.shape)
    np.put_along_axis(ranked, order, (first + last) / 2 + 1, axis=1)
    return ranked
