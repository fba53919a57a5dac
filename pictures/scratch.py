"""Memory that each thread uses again for every image: fresh pages for each cost as much as a third of a decode."""

from __future__ import annotations

import threading

import numpy as np

_MOST = 16_000_000
"""Larger images are rare, and would keep it all."""

_local = threading.local()


def scratch(purpose: str, size: int) -> np.ndarray | None:
    """`size` uint8 of this thread's memory for a purpose, whose last content is lost; None if that is too many."""
    if size > _MOST:
        return None
    held: np.ndarray | None = getattr(_local, purpose, None)
    if held is None or held.size < size:
        held = np.empty(size, np.uint8)
        setattr(_local, purpose, held)
    return held[:size]
