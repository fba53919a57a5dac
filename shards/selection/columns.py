"""What samples can be judged by: columns of a shard, made of its metadata, of its captions, or of tables by key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pictures.opening import UnforeseeableError, upright_size
from pictures.refusal import RefusedError
from shards.errors import UserError
from shards.shard import Shard
from shards.side_table import SideTable

_SIDES = ("width", "height", "short_side", "aspect")
_CAPTIONS = ("caption", "caption_words", "caption_chars")


class Columns:
    """The columns of one shard, each made when it is asked for, a value a sample."""

    def __init__(self, shard: Shard, tables: Sequence[SideTable]) -> None:
        self.shard, self._tables = shard, tables

    def __getitem__(self, name: str) -> pa.Array:
        """Values in the shard's order, null where a sample has none.

        Raises `UserError` if no sample of the shard has such a column.
        """
        for table in self._tables:
            if name in table.columns:
                return pa.array(table.values(name, self.shard.keys))
        if name == "key":
            return pa.array(self.shard.keys, pa.string())
        if name == "bytes":
            return pa.array([self.shard.places(row)[0][1] for row in range(self.shard.count)], pa.int64())
        if name in _CAPTIONS:
            return self._of_captions(name)
        if name in _SIDES:
            return self._of_sides(name)
        return self._of_metadata(name)

    @cached_property
    def _meta(self) -> list[dict[str, Any]]:
        return [self.shard.meta(row) for row in range(self.shard.count)]

    def _of_captions(self, name: str) -> pa.Array:
        captions = [self.shard.caption(row) for row in range(self.shard.count)]
        if name == "caption":
            return pa.array(captions, pa.string())
        return pa.array([len(text.split()) if name == "caption_words" else len(text) for text in captions], pa.int64())

    def _of_sides(self, name: str) -> pa.Array:
        sides = [self._side(row, meta) for row, meta in enumerate(self._meta)]
        if name in {"width", "height"}:
            return pa.array([side[name == "height"] for side in sides], pa.int64())
        if name == "short_side":
            return pa.array([min(side) for side in sides], pa.int64())
        return pa.array([max(side) / max(1, min(side)) for side in sides], pa.float64())

    def _side(self, row: int, meta: dict[str, Any]) -> tuple[int, int]:
        """Width and height, upright: the metadata's, or the header's, which is read without decoding."""
        width, height = meta.get("width"), meta.get("height")
        if isinstance(width, int) and isinstance(height, int):
            return width, height
        try:
            return upright_size(self.shard.image_bytes(row))
        except (RefusedError, UnforeseeableError) as error:
            raise UserError(
                f"the image of {self.shard.keys[row]} has no header that is read ({error or 'of a rare format'})",
                where=self.shard.tar,
                do="Run `clipstill shards verify`",
            ) from None

    def _of_metadata(self, name: str) -> pa.Array:
        values = [meta.get(name) for meta in self._meta]
        if values and not any(name in meta for meta in self._meta):
            known = sorted({field for meta in self._meta for field in meta})
            more = [column for table in self._tables for column in table.columns]
            raise UserError(
                f"no sample of shard {self.shard.id:05d} has a field {name!r}",
                where=str(self.shard.folder),
                do=f"There are {', '.join([*known, *more, *_CAPTIONS, *_SIDES, 'bytes'])}",
            )
        try:
            return pa.array(values)
        except (pa.ArrowException, OverflowError):
            # Of several kinds: as text, by which a condition compares what is no number.
            return pa.array([None if value is None else str(value) for value in values], pa.string())


def digests_of(keys: Sequence[str]) -> npt.NDArray[np.uint64]:
    """(n,): 64 bits of BLAKE2b of each key; of a billion keys two are taken for one with a probability of 3 %."""
    joined = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(joined, np.uint64)
