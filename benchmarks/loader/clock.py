"""Shared by the contenders' programs, some of which run where nothing of ours is installed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

_WARM = 1.0
"""Seconds before the clock starts: what was made while nobody asked is used up by then."""


def wanted() -> dict[str, Any]:
    """What to measure, from the command line: `tars` (paths), `scale`, `size`, `cores`, `batch`, `seconds`."""
    value: dict[str, Any] = json.loads(sys.argv[1])
    return value


def speed(batches: Iterator[int], seconds: float) -> dict[str, float]:
    """Of an endless iterator, which yields how many samples each batch has: samples a second, `rate`, and microseconds
    of this process's CPU a sample, `cpu`, which says little where other processes do the work.
    """
    began = time.perf_counter()
    while next(batches) and time.perf_counter() - began < _WARM:
        pass
    started, used, samples = time.perf_counter(), time.process_time(), 0
    while (passed := time.perf_counter() - started) < seconds:
        samples += next(batches)
    return {"rate": samples / passed, "cpu": (time.process_time() - used) / samples * 1e6}


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)  # noqa: T201
