"""Image-text retrieval: recall at 1, 5 and 10 and ranks, both ways (the protocol of COCO and Flickr30k)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

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
    NaN: embeddings that are all the same
    rank every right answer behind all wrong ones.
    """
    images = torch.arange(len(image_embeddings), device=text_to_image.device)
    return recall_of_groups(image_embeddings, text_embeddings, images, text_to_image)


def recall_of_groups(
    image_embeddings: Tensor, text_embeddings: Tensor, image_groups: Tensor, text_groups: Tensor
) -> dict[str, dict[str, float]]:
    """As `recall`, where an image (n,) and a text (m,) belong together if their group numbers (int64) are equal."""
    images, texts = (normalize(part.double(), dim=-1) for part in (image_embeddings, text_embeddings))
    return {
        "image_to_text": _summary(_ranks(images, texts, image_groups, text_groups)),
        "text_to_image": _summary(_ranks(texts, images, text_groups, image_groups)),
    }


def _ranks(queries: Tensor, candidates: Tensor, query_groups: Tensor, candidate_groups: Tensor) -> Tensor:
    """Rank, from 1, of each query's most similar right candidate, for queries that have one: int64.

    Only wrong candidates are counted ahead of it; a block of similarities at a time is held in memory.
    """
    asking = torch.isin(query_groups, candidate_groups)
    queries, query_groups = queries[asking], query_groups[asking]
    if len(queries) == 0:
        raise ValueError("retrieval without a single pair")
    rows = max(1, _SIMILARITIES_A_BLOCK // len(candidates))
    ranks = []
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ candidates.T
        right = query_groups[start : start + rows, None] == candidate_groups
        best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        # Negated so that a NaN on either side counts as ahead.
        ahead = ~(similarity < best - _TIE) & ~right
        ranks.append(1 + ahead.sum(dim=1))
    return torch.cat(ranks)


def _summary(ranks: Tensor) -> dict[str, float]:
    recalls = {f"R@{k}": 100.0 * (ranks <= k).double().mean().item() for k in _KS}
    median = float(np.median(ranks.cpu().numpy()))
    return {
        **recalls,
        "mean_rank": ranks.double().mean().item(),
        "median_rank": median,
        "median_rank_open_clip": float(math.floor(median)),
    }
