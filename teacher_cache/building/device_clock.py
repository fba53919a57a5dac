"""How long a device has worked, told without making it wait."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch


class DeviceClock:
    """Adds up the blocks that it is entered for. A GPU runs them later, and says itself when it did."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = self._began = 0.0
        self._events: deque[tuple[Any, Any]] = deque()

    @property
    def seconds(self) -> float:
        """Of all blocks that have ended on the device."""
        while self._events and self._events[0][1].query():
            first, last = self._events.popleft()
            self._seconds += first.elapsed_time(last) / 1000
        return self._seconds

    def __enter__(self) -> None:
        if self._on_gpu:
            event: Any = torch.cuda.Event
            self._events.append((event(enable_timing=True), event(enable_timing=True)))
            self._events[-1][0].record()
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began
