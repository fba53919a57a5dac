"""Contact sheets: some samples of a dataset, drawn at random and ever the same, as small pictures within the page."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from shards import Folder, seed64
from shards.ranges import read_range

_SIDE = 192


def drawn(counts: Sequence[int], name: str, most: int) -> list[tuple[int, int]]:
    """Up to `most` samples of shards with so many `counts`: places of shards and rows there, in order."""
    ends = np.cumsum(counts) if counts else np.zeros(1, np.int64)
    chosen: set[int] = set()
    draws = itertools.count()
    while len(chosen) < min(most, int(ends[-1])):
        chosen.add(seed64("contact sheet", name, next(draws)) % int(ends[-1]))
    places = [(int(np.searchsorted(ends, sample, side="right")), sample) for sample in sorted(chosen)]
    return [(place, sample - int(ends[place]) + counts[place]) for place, sample in places]


def part_of(folder: Folder, name: str, start: int, size: int) -> bytes:
    """Some bytes of a file. Not through a shard: of a tar on an object store a few kilobytes are wanted."""
    return read_range(f"{folder.url.rstrip('/')}/{name}", start, size)


def thumbnail(data: bytes) -> str:
    """Encoded anew: what is shown is an image and small, whatever the stored bytes hold beside it."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    return data_url(small)


def data_url(image: Image.Image) -> str:
    """The image as a JPEG within a page."""
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()
