"""Look into a dataset: what its shards are, and one sample by its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shards.reader import Dataset
from shards.shard import Shard


@dataclass(frozen=True)
class ShardLine:
    """A shard's number, samples, its tar's bytes and where that lies."""

    shard: int
    samples: int
    bytes: int
    tar: str


@dataclass(frozen=True)
class Found:
    """A sample: where it is, and what it says. `offset` and `bytes` are its image's within `tar`."""

    key: str
    shard: int
    row: int
    tar: str
    offset: int
    bytes: int
    caption: str
    meta: dict[str, Any]


def shard_lines(dataset: Dataset) -> Iterator[ShardLine]:
    """Every shard, in order."""
    for shard in dataset.shards:
        yield ShardLine(shard.id, shard.count, shard.record.file(".tar").bytes, shard.tar)


def find(dataset: Dataset, key: str) -> tuple[Shard, int]:
    """The shard and row of the sample `key`; looks through one index after the other.

    Raises `UserError` if there is none.
    """
    for shard in dataset.shards:
        keys = shard.keys
        if key in keys:
            return shard, keys.index(key)
        shard.release()
    raise dataset.unknown(key)


def describe(shard: Shard, row: int) -> Found:
    """What there is to know of a sample."""
    (offset, size), *_ = shard.places(row)
    meta, caption = shard.meta(row), shard.caption(row)
    return Found(shard.keys[row], shard.id, row, shard.tar, offset, size, caption, meta)
