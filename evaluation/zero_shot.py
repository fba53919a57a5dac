"""Zero-shot classification as in CLIP (Radford et al., ICML 2021, section 3.1), and with several labels an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evaluation.figures import Figure, f1_macro, mean_average_precision, share, share_by_group
from evaluation.tasks import FEW, Classification, MultiLabel
from shards.errors import UserError

_LOGITS_A_BLOCK = 1 << 24
_MOST_GROUPS = 64
_FEW_CLASSES = 5


class Answers(NamedTuple):
    """Of each image the rank of its class, from 0, and the class with the highest logit: both (n,) int64."""

    ranks: Tensor
    chosen: Tensor


def answers(image_embeddings: Tensor, weights: Tensor, labels: Tensor) -> Answers:
    """`image_embeddings` (n, D) and `weights` (C, D), rows of unit length; `labels` (n,) int64 in [0, C).

    Logits are 100·image·classᵀ, a block of them at a time. Of equal logits the lower class comes first, as with argmax,
    so embeddings that are all the same score what always answering class 0 scores. A NaN logit is a miss.
    """
    ranks, chosen = [], []
    columns = torch.arange(len(weights), device=weights.device)
    rows = max(1, _LOGITS_A_BLOCK // len(weights))
    for start in range(0, len(image_embeddings), rows):
        wanted = labels[start : start + rows, None]
        logits = 100.0 * image_embeddings[start : start + rows] @ weights.T
        own = logits.gather(1, wanted)
        # Negated so that a NaN on either side counts as ahead.
        ahead = ~(logits <= own) | ((logits == own) & (columns < wanted))
        ranks.append(ahead.sum(dim=1))
        chosen.append(logits.argmax(dim=1))
    return Answers(torch.cat(ranks), torch.cat(chosen))


def top_k(image_embeddings: Tensor, weights: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Top-k accuracy in percent, as `{"top1": ..., "top5": ...}`; arguments as of `answers`."""
    if len(image_embeddings) == 0:
        raise ValueError("top_k of no images")
    ranks = answers(image_embeddings, weights, labels).ranks
    return {f"top{k}": 100.0 * (ranks < k).double().mean().item() for k in ks}


def classification(
    task: Classification, images: Tensor, weights: Tensor, where: str
) -> tuple[dict[str, Figure], Answers]:
    """`top1`; `top5` from five classes on; `mean_per_class`, the mean over classes of recall (balanced accuracy);
    where DataComp groups the images `f1_macro` and the worst of each grouping, `worst_NAME` and `worst_NAME_top5`.

    Raises `UserError` if the labels are numbers that were sorted as text.
    """
    labels = task.labels
    found = answers(images, weights, torch.from_numpy(labels))
    ranks, chosen = found.ranks.numpy(), found.chosen.numpy()
    classes, count = len(weights), len(labels)
    refuse_other_order(labels, chosen, classes, where)
    hits = ranks < 1
    figures = {"top1": share(hits, None, count)}
    if classes >= FEW:
        figures["top5"] = share(ranks < FEW, None, count)
    figures["mean_per_class"] = share_by_group(hits, labels)
    if task.groups:
        figures["f1_macro"] = f1_macro(labels, chosen, classes)
    for name, groups in task.groups.items():
        if len(np.unique(groups)) <= _MOST_GROUPS:
            figures[f"worst_{name}"] = share_by_group(hits, groups, worst=True)
            if classes >= FEW:
                figures[f"worst_{name}_top5"] = share_by_group(ranks < FEW, groups, worst=True)
    return figures, found


def several_labels(task: MultiLabel, images: Tensor, weights: Tensor) -> dict[str, Figure]:
    """`mAP`, the mean of the classes' average precisions."""
    logits = (100.0 * images @ weights.T).numpy()
    return {"mAP": mean_average_precision(np.nan_to_num(logits, nan=-np.inf), task.labels)}


def refuse_other_order(labels: np.ndarray, chosen: np.ndarray, classes: int, where: str) -> None:
    """Raise `UserError` if the model is right far more often once labels are taken for places in 0, 1, 10, 11, ..., 2.

    That is what sorting folders named by numbers as text makes of them, and what nobody sees in a low figure. It takes
    twice as many hits and five standard deviations more than there are, in five classes at least and twice as many as
    have fewer: a model that says one class of everything is right or wrong by how often that class is there.
    """
    by_text = np.array(sorted(range(classes), key=str))
    if classes <= 10:
        return
    right, other = labels == chosen, by_text[labels] == chosen
    hits, others = int(right.sum()), int(other.sum())
    surplus = np.bincount(labels, weights=other * 1.0 - right, minlength=classes)
    more, fewer = int((surplus > 0).sum()), int((surplus < 0).sum())
    widely = more >= _FEW_CLASSES and more > 2 * fewer
    if widely and others > 2 * hits + 10 and others - hits > 5 * np.sqrt(others + hits):
        raise UserError(
            f"the labels are class numbers sorted as text (0, 1, 10, 11, ...): taken so, {others} of {len(labels)} "
            f"images are classified rightly, and {hits} as they stand",
            where=where,
            do="Make the set anew, with its folders sorted as numbers",
        )
