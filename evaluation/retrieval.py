"""Image-text retrieval: recall at 1, 5 and 10 and ranks, both ways (the protocol of COCO and Flickr30k)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from evaluation.figures import Figure, mean_of, share
from evaluation.tasks import Retrieval

SHARED = "shared_captions"

_KS = (1, 5, 10)
_SIMILARITIES_A_BLOCK = 1 << 23
# Two orderings of one float64 sum over unit vectors differ by less; two different float32 rows hardly ever do.
_TIE = 1e-12


def recall(image_embeddings: Tensor, text_embeddings: Tensor, text_to_image: Tensor) -> dict[str, dict[str, float]]:
    """Retrieval with one or several captions an image.

    `image_embeddings` (n, D), `text_embeddings` (m, D) float, of any length; `text_to_image` (m,) int64 in [0, n): the
    image each text describes. An image finds its captions: a hit if *any* of them is within the k most similar texts,
    its rank being that of the best one. A text finds its one image. Images without a caption can be found wrongly
    but ask nothing.

    Returns `{"image_to_text": {"R@1", "R@5", "R@10", "mean_rank", "median_rank", "median_rank_open_clip"},
    "text_to_image": {the same}}`: recall in percent, ranks from 1. `median_rank_open_clip` is the median as open_clip
    and CLIP-KD report it, rounded down (2 where the median is 2.5). Every tie counts against the model, and so does
    NaN: embeddings that are all the same rank every right answer behind all wrong ones.
    """
    images = torch.arange(len(image_embeddings), device=text_to_image.device)
    return recall_of_groups(image_embeddings, text_embeddings, images, text_to_image)


@dataclass(frozen=True)
class Relevance:
    """Which texts are right for which images: both have numbers in common. Sparse: `images` (n, c), `texts` (m, c).

    So that a million images with one caption cost no matrix of all pairs.
    """

    images: Any
    texts: Any

    @staticmethod
    def of_groups(image_groups: Tensor, text_groups: Tensor) -> Relevance:
        """Image (n,) and text (m,) belong together if their group numbers are equal."""
        _, numbers = np.unique(np.concatenate([image_groups.cpu(), text_groups.cpu()]), return_inverse=True)
        numbers = numbers.reshape(-1)
        count = int(numbers.max()) + 1 if len(numbers) else 0
        images, texts = numbers[: len(image_groups)], numbers[len(image_groups) :]
        return Relevance(
            _incidence(np.arange(len(images)), images, len(images), count),
            _incidence(np.arange(len(texts)), texts, len(texts), count),
        )

    @staticmethod
    def of_task(task: Retrieval, images: int) -> Relevance:
        """By the image that each caption is of; where equal captions are right, by what the captions say."""
        ids = task.image_of
        count = images
        if task.equal_is_right:
            _, ids = np.unique(np.array(task.captions, dtype=object).astype(str), return_inverse=True)
            ids = ids.reshape(-1)
            count = int(ids.max()) + 1
        texts = len(task.captions)
        return Relevance(_incidence(task.image_of, ids, images, count), _incidence(np.arange(texts), ids, texts, count))


def _incidence(rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> Any:
    found = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(height, width))
    found.sum_duplicates()
    return found


def retrieval(task: Retrieval, images: Tensor, texts: Tensor) -> tuple[dict[str, Any], dict[str, Figure]]:
    """The result as of `recall`, with `mean_R@1` of both ways, and the recalls as figures, `image_to_text/R@1`, ...

    `images` (n, D), `texts` (m, D) of any length.
    """
    ways = ranks(images, texts, Relevance.of_task(task, len(images)))
    result: dict[str, Any] = {name: _summary(torch.from_numpy(found)) for name, (_, found) in ways.items()}
    figures: dict[str, Figure] = {}
    for name, (asking, found) in ways.items():
        image_of = asking if name == "image_to_text" else task.image_of[asking]
        for k in _KS:
            figures[f"{name}/R@{k}"] = share(found <= k, image_of, len(images))
    figures["mean_R@1"] = mean_of([figures[f"{name}/R@1"] for name in ways])
    return {**result, "mean_R@1": figures["mean_R@1"].value}, figures


def recall_of_groups(
    image_embeddings: Tensor, text_embeddings: Tensor, image_groups: Tensor, text_groups: Tensor
) -> dict[str, dict[str, float]]:
    """As `recall`, where an image (n,) and a text (m,) belong together if their group numbers (int64) are equal."""
    ways = ranks(image_embeddings, text_embeddings, Relevance.of_groups(image_groups, text_groups))
    return {name: _summary(torch.from_numpy(found)) for name, (_, found) in ways.items()}


def ranks(images: Tensor, texts: Tensor, right: Relevance) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both ways: which queries ask (those with a right answer), and the rank of each one's nearest one, from 1."""
    unit = [normalize(part.double(), dim=-1) for part in (images, texts)]
    return {
        "image_to_text": _ranks(unit[0], unit[1], right.images, right.texts),
        "text_to_image": _ranks(unit[1], unit[0], right.texts, right.images),
    }


def _ranks(queries: Tensor, candidates: Tensor, asked: Any, offered: Any) -> tuple[np.ndarray, np.ndarray]:
    """Only wrong candidates are counted ahead; a block of similarities at a time is held in memory."""
    offers = offered.T.tocsr()
    there = np.asarray(offered.sum(axis=0)).reshape(-1) > 0
    asking = np.flatnonzero(np.asarray(asked @ there.astype(np.float32)).reshape(-1) > 0)
    if len(asking) == 0:
        raise ValueError("retrieval without a single pair")
    rows = max(1, _SIMILARITIES_A_BLOCK // len(candidates))
    found = []
    for start in range(0, len(asking), rows):
        block = asking[start : start + rows]
        similarity = queries[torch.from_numpy(block)] @ candidates.T
        right = torch.from_numpy((asked[block] @ offers).toarray() > 0).to(similarity.device)
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        # Negated so that a NaN on either side counts as ahead.
        ahead = ~(similarity < best - _TIE) & ~right
        found.append(1 + ahead.sum(dim=1).cpu().numpy())
    return asking, np.concatenate(found)


def _summary(ranks: Tensor) -> dict[str, float]:
    recalls = {f"R@{k}": 100.0 * (ranks <= k).double().mean().item() for k in _KS}
    median = float(np.median(ranks.cpu().numpy()))
    return {
        **recalls,
        "mean_rank": ranks.double().mean().item(),
        "median_rank": median,
        "median_rank_open_clip": float(math.floor(median)),
    }
