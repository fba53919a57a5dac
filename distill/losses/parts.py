"""A loss in parts of its rows, each computed again on the way back: no B x B matrix is ever whole.

What is held at the height of a step is a few matrices of a part's rows x B, of `BLOCK` elements at most. How many says
`benchmarks/distill/losses.py`, and measures it: with two teachers 20 for the costliest loss (`gd`), 2.7 GB in float32
whatever the batch. The price is the losses' forward once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.losses.base import ALL, Embeddings, Loss

BLOCK = 2**25
"""Elements of a part's rows x B: 134 MB in float32. Up to B = 5,792 in one process a batch is one part."""


def parts_of(size: int, rows: slice = ALL) -> list[slice]:
    """The `rows` of a batch of `size` in as few equal parts as fit in `BLOCK`; the last may be shorter."""
    start, stop, _ = rows.indices(size)
    count = math.ceil((stop - start) * size / BLOCK)
    if count <= 1:
        return [rows]
    length = math.ceil((stop - start) / count)
    return [slice(at, min(at + length, stop)) for at in range(start, stop, length)]


def recomputed(function: Callable[[slice], Tensor], parts: Sequence[slice]) -> list[Tensor]:
    """`function` of each part. Of several, the gradient calls it again, so that it must give the same."""
    if len(parts) == 1:
        return [function(parts[0])]
    return [checkpoint(function, part, use_reentrant=False, preserve_rng_state=False) for part in parts]


def in_parts(loss: Loss, student: Embeddings, teachers: Sequence[Embeddings], rows: slice = ALL) -> Tensor:
    """`loss(student, teachers, rows)`; of a large batch the mean over parts of the rows, one after the other."""
    size = len(student.image)
    common = loss.common(student, teachers) if len(parts_of(size)) > 1 else ()
    parts = parts_of(size, rows)
    means = recomputed(lambda part: loss(student, teachers, part, *common), parts)
    if len(means) == 1:
        return means[0]
    lengths = [part.stop - part.start for part in parts]
    return torch.stack([mean * (length / sum(lengths)) for mean, length in zip(means, lengths, strict=True)]).sum()
