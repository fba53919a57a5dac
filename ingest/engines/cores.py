"""How many cores a worker has to itself."""

from __future__ import annotations

import os


def cores() -> int:
    """By `OMP_NUM_THREADS`, which Ray's workers are started with; else all of the machine's."""
    # A list of one number for each level of nesting is legal.
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    wanted = int(first) if first.isascii() and first.isdigit() else 0
    return wanted or os.cpu_count() or 1
