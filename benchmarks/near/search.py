"""Group hashes in a process of its own: `python -m benchmarks.near.search KIND HASHES DISTANCE`."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np

from shards.near import Hashes, Places, near_groups

KINDS = ("random", "alike", "blank")
_PLANTED = 0.02
"""The share of the hashes that are copies, each of another hash with as many bits turned as are searched for."""


def made(kind: str, count: int, distance: int) -> tuple[Hashes, Places, Places]:
    """Hashes, and of the planted pairs the places of both.

    `random`: no two near each other but by plan. `alike`: a thousand scenes and a tenth of all bits turned, which
    fills some buckets a hundred times as full. `blank`: half of them a white page's, equal or up to 3 bits off.
    """
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, np.uint64)
    if kind == "alike":
        hashes = hashes[:1000][random.integers(0, 1000, count)]
        for bit in range(64):
            hashes ^= (random.random(count) < 0.1).astype(np.uint64) << np.uint64(bit)
    order = random.permutation(count)
    copies, originals = np.split(order[: 2 * int(_PLANTED * count)], 2)
    if kind == "blank":
        blank = order[count // 2 :]
        hashes[blank] = 0
        for _ in range(3):
            some = blank[: len(blank) // 10]
            hashes[some] ^= np.uint64(1) << random.integers(0, 64, len(some), np.uint64)
    bits = np.argsort(random.random((len(copies), 64)), axis=1)[:, :distance].astype(np.uint64)
    hashes[copies] = hashes[originals] ^ np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
    return hashes, copies, originals


def search(kind: str, count: int, distance: int) -> dict[str, Any]:
    """Seconds of wall time and CPU, memory, and the share of the planted pairs that are in one group."""
    hashes, copies, originals = made(kind, count, distance)
    near_groups(hashes[:2])  # what is imported late is no part of it
    before = _peak()
    wall, cpu = time.monotonic(), time.process_time()
    groups = near_groups(hashes, distance)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {
        "seconds": wall,
        "cpu": cpu,
        "peak": _peak(),
        "peak_before": before,
        "groups": len(np.unique(groups)),
        "largest": int(np.bincount(groups).max()),
        "found": float((groups[copies] == groups[originals]).mean()),
    }


def _peak() -> int:
    """Bytes of memory, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(search(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
