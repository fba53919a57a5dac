"""Rows by the hash that they begin with, on disk: more than fit in memory, and yet all of one hash at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_PARTS = 256
_AT_ONCE = 1 << 16
"""Rows that are held until they are spilled: every part is opened each time."""

Rows = npt.NDArray[np.void]


class Spill:
    """Collects rows of a dtype with a uint64 `high`, whose first byte says which of 256 parts has a row; use as a
    context manager. Memory is that of some 65,000 rows, and of a part while it is read.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._scratch = tempfile.TemporaryDirectory(prefix="clipstill-")
        self._held: list[Rows] = []
        self.rows = self._spilled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    @property
    def scratch(self) -> Path:
        """A folder that is gone when this is."""
        return Path(self._scratch.name)

    def add_rows(self, rows: Rows) -> None:
        self._held.append(rows)
        self.rows += len(rows)
        if self.rows - self._spilled >= _AT_ONCE:
            self._spill()

    def parts(self) -> Iterator[Rows]:
        """The rows of each part, in the order they came: 256 arrays, some of which may be empty."""
        self._spill()
        for number in range(_PARTS):
            part = self._part(number)
            yield np.fromfile(part, self._dtype) if part.exists() else np.empty(0, self._dtype)

    def _part(self, number: int) -> Path:
        return self.scratch / f"{number:03d}"

    def _spill(self) -> None:
        rows = np.concatenate([np.empty(0, self._dtype), *self._held])
        self._held, self._spilled = [], self.rows
        for number, chosen in by_part(rows["high"]):
            with self._part(number).open("ab") as file:
                rows[chosen].tofile(file)


def by_part(highs: npt.NDArray[np.uint64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """The parts that some hashes are in, with their places among these hashes, in order."""
    numbers = highs >> np.uint64(56)
    order = np.argsort(numbers, kind="stable")
    parts, starts = np.unique(numbers[order], return_index=True)
    return zip(parts.tolist(), np.split(order, starts[1:]), strict=False)
