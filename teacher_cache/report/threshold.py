"""From which cosine on two images count as near duplicates, for one teacher.

A fixed value such as 0.95 means another thing to each teacher: a weak one puts plainly different photos nearer than
that. So the threshold is read from how far images lie from their nearest neighbours. Most of these distances (1 -
cosine) form a bulk, on a logarithmic scale, whose spread says how near unrelated images come. Pairs well below the bulk
are duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teacher_cache.dtypes import load
from teacher_cache.report.duplicates import BLOCK, Rows, product

LEAST = 0.95
"""No images of a lower cosine are called near duplicates, however far the others are."""
_PROBES, _FEWEST = 500, 50
_SPREADS = 5.0
"""Of nearest distances in a space of any dimension about one in 400 is so far below their median by chance."""
_SAME, _FINEST = 1e-6, 1e-5
"""A distance below which images are copies, and the least that float16 rows tell from none."""


@dataclass(frozen=True)
class Threshold:
    """`cosine` above which images are near duplicates. `usual`: the median cosine of an image to its nearest other one,
    NaN if it is not known. `doubt`: why nothing can be advised by it, empty if it can.
    """

    cosine: float
    usual: float
    doubt: str = ""


def near_threshold(rows: Rows) -> Threshold:
    """For usable rows, as in `nearest`; of many a sample is compared with all."""
    if len(rows) < _FEWEST:
        return Threshold(LEAST, float("nan"), f"{len(rows)} images are too few to know what is near to this teacher")
    distances = 1 - _to_nearest(rows).astype(np.float64)
    apart = distances[distances > _SAME]
    if 2 * len(apart) < len(distances):
        return Threshold(LEAST, 1.0, "most images have exact copies, so that it is not known how near others come")
    logs = np.log(apart)
    spread = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
    near = float(np.exp(np.median(logs) - _SPREADS * spread))
    usual = 1 - float(np.median(apart))
    if near < _FINEST:
        return Threshold(1 - _FINEST, usual, "this teacher tells images apart too little for any to be called alike")
    return Threshold(max(LEAST, 1 - near), usual)


def _to_nearest(rows: Rows) -> npt.NDArray[np.float32]:
    """The cosine of some rows to the nearest other one."""
    chosen = np.sort(np.random.default_rng(0).choice(len(rows), min(_PROBES, len(rows)), replace=False))
    probes, best = load(rows[chosen], "float16"), np.full(len(chosen), -2, np.float32)
    for start in range(0, len(rows), BLOCK):
        cosines = product(probes, load(rows[start : start + BLOCK], "float16").T)
        own = np.flatnonzero((chosen >= start) & (chosen < start + cosines.shape[1]))
        cosines[own, chosen[own] - start] = -2
        np.maximum(best, cosines.max(axis=1), out=best)
    return best
