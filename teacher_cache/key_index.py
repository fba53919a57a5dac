"""Numbers by key, for as many keys as a dataset has: sorted hashes in memory, 24 bytes a key."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b

import numpy as np
import numpy.typing as npt


class KeyIndex:
    """Give it keys with `add`, then look them up.

    A key is known by 16 bytes of BLAKE2b, so two of them are never taken for one. A lookup is a binary search. While
    the hashes are sorted, which the first lookup does, it takes about 50 bytes a key.
    """

    def __init__(self) -> None:
        self._hashes, self._numbers = bytearray(), bytearray()  # grown in place, where small arrays would be joined

    def add(self, keys: Sequence[str], numbers: npt.NDArray[np.int64]) -> None:
        """(n,) numbers of n keys; nothing can be added after a lookup."""
        assert "_sorted" not in self.__dict__, "added after a lookup"
        self._hashes += _hashes(keys)
        self._numbers += numbers.astype(np.int64).tobytes()

    def __len__(self) -> int:
        return len(self._sorted[0])

    def find(self, keys: Sequence[str]) -> npt.NDArray[np.int64]:
        """(n,) the number of each key, -1 where it is unknown; of a key that was added twice the first."""
        hashes, numbers = self._sorted
        if not len(hashes) or not len(keys):
            return np.full(len(keys), -1, np.int64)
        wanted = np.frombuffer(_hashes(keys), "S16")
        at = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        return np.where(hashes[at] == wanted, numbers[at], -1)

    def repeated(self) -> int | None:
        """The number that a key was given when it was added again, None if every key was added once."""
        hashes, numbers = self._sorted
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        return int(numbers[again[0] + 1]) if again.size else None

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]]:
        hashes, numbers = np.frombuffer(self._hashes, "S16"), np.frombuffer(self._numbers, np.int64)
        self._hashes, self._numbers = bytearray(), bytearray()
        order = np.argsort(hashes, kind="stable")
        return hashes[order], numbers[order]


def _hashes(keys: Sequence[str]) -> bytes:
    return b"".join([blake2b(key.encode(), digest_size=16).digest() for key in keys])
