"""Near duplicates among pictures: a hash of 64 bits of what each looks like, and groups of hashes that are alike.

The hash is pHash, to the bit as `imagehash` defines it: the signs, about their median, of the 8x8 lowest frequencies of
the picture in grey at 32x32 pixels. Copies in another size or quality differ in 0 to 2 bits, and so do, at 4 bits at
most, nine in ten of those with 1 % cut off each side; strangers in 32 on average.

The search is exact, by blocks as in Manku, Jain, Das Sarma: Detecting near-duplicates for web crawling (WWW 2007).
Cut into `distance + k` blocks of bits, two hashes that differ in at most `distance` bits agree in k blocks or more. So
for every choice of k blocks the hashes are sorted by these, and compared where they agree in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from pictures.exif import TURNS
from pictures.opening import UnforeseeableError, open_image
from pictures.refusal import RefusedError

NEAR = 4
"""Bits. Nearly all pHashes differ in an even number, having as many ones as zeros."""
_BITS = 64
_SIDE, _PIXELS_EACH = 32, 4
"""What the hash is made of, and how many pixels across a JPEG must have left for each of it when it is reduced."""
_MOST_PIXELS = 100_000_000
_MOST_BLOCKS = 4
_MANY = 1024
"""More hashes that agree in some blocks are searched by blocks of their other bits, instead of all compared."""
_WAITING = 64
"""Groups are renewed, which costs as much as sorting, when pairs between them are a 64th of the hashes."""
_SORTING = 40
"""Sorting costs a hash as much as so many comparisons."""

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


def image_hash(data: bytes) -> int:
    """The 64 bits of an image file's pHash, the first one highest, of the picture as it is shown: upright, on white.

    JPEGs are decoded at a scale that leaves 128 pixels to the shorter side, which moves 0 to 2 bits. Raises
    `RefusedError` for what is truncated, too large or no image, and for kinds of files that may take minutes.
    """
    import imagehash  # noqa: PLC0415 - not for those who only compare
    from PIL import Image  # noqa: PLC0415

    try:
        picture = open_image(data, _MOST_PIXELS, alone=False)
    except UnforeseeableError:
        raise RefusedError("not_an_image", "no baseline or progressive JPEG, PNG or WebP") from None
    room = min(picture.size) // (_SIDE * _PIXELS_EACH) if picture.format == "JPEG" else 1
    pixels = picture.decode(next((scale for scale in (8, 4, 2) if scale <= room), 1), fine=True)
    if pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels[:, :, :3])
    image = Image.fromarray(pixels)
    turn = picture.turn()
    bits = imagehash.phash(image.transpose(TURNS[turn]) if turn in TURNS else image).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_groups(hashes: Hashes, distance: int = NEAR) -> Places:
    """(n,) for each of n hashes the place of the first one in its group.

    A group is what pairs that differ in at most `distance` bits connect, be it over others. Every pair is found. Memory
    is about 150 B a hash. Time grows with the pairs that agree in some blocks; equal hashes count once.
    """
    if not 0 <= distance < _BITS // 2:
        raise ValueError(f"{distance} bits: from 0 to {_BITS // 2 - 1} can be searched for")
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    search = _Search(distinct, distance)
    search.join_near(np.arange(len(distinct)))
    search.settle()
    lowest = np.full(len(distinct), len(hashes), np.int64)
    np.minimum.at(lowest, search.group, first)
    named: Places = lowest[search.group][inverse]
    return named


def first_copies(hashes: Hashes, distance: int = NEAR) -> Places:
    """(n,) for each of n hashes the place of the one that is kept for it, its own if that is itself.

    In their order each is kept unless it is near one that is kept already: the first of those stands for it. So no two
    that are kept are near, and nothing goes for what it is only near over others that go too.
    """
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    ranked, rank = distinct[order], np.argsort(order)
    kept = near_groups(ranked, distance)
    # Of a group of two the first is kept for both. Its name is already the first's.
    for members in _groups(kept, least=3):
        rest = members
        while len(rest):
            near = np.bitwise_count(ranked[rest] ^ ranked[rest[0]]) <= distance
            kept[rest[near]] = rest[0]
            rest = rest[~near]
    found: Places = first[order[kept]][rank[inverse]]
    return found


def near_any(hashes: Hashes, others: Hashes, distance: int = NEAR) -> npt.NDArray[np.bool_]:
    """(n,) which of n hashes is near one of the others."""
    distinct, inverse = np.unique(hashes, return_inverse=True)
    theirs = np.unique(others)
    every = np.concatenate([theirs, distinct])
    found = np.zeros(len(every), np.bool_)
    for members in _groups(near_groups(every, distance), least=2):
        ones, own = members[members < len(theirs)], members[members >= len(theirs)]
        if len(ones) <= len(own):
            for one in ones:
                found[own] |= np.bitwise_count(every[own] ^ every[one]) <= distance
        elif len(own):
            for one in own:
                found[one] = (np.bitwise_count(every[ones] ^ every[one]) <= distance).any()
    alike: npt.NDArray[np.bool_] = found[len(theirs) :][inverse]
    return alike


def _groups(names: Places, least: int) -> Iterator[Places]:
    """The places of each group of `least` or more, ascending."""
    order = np.argsort(names, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(names[order]) != 0]) if len(names) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(names)])
    for start, size in zip(starts[sizes >= least].tolist(), sizes[sizes >= least].tolist(), strict=True):
        yield order[start : start + size]


def _masks(bits: list[int], distance: int, count: int) -> list[np.uint64]:
    """Every choice of k blocks of these bits, for the k that costs `count` hashes the least, were the bits random."""
    costs = {}
    for k in range(1, min(_MOST_BLOCKS, len(bits) - distance) + 1):
        agreeing = count / 2 ** (1 + k * len(bits) // (distance + k))
        costs[k] = comb(distance + k, k) * (_SORTING + agreeing)
    k = min(costs, key=lambda k: costs[k])
    blocks = np.array_split(np.array([1 << bit for bit in bits], np.uint64), distance + k)
    return [np.bitwise_or.reduce(np.concatenate(chosen)) for chosen in combinations(blocks, k)]


class _Search:
    """`group` (n,): equal for those of n distinct hashes that were joined, directly or over others."""

    def __init__(self, distinct: Hashes, distance: int) -> None:
        self._distinct, self._distance = distinct, distance
        self.group: Places = np.arange(len(distinct))
        self._waiting: list[tuple[Places, Places]] = []
        self._pairs = 0

    def join_near(self, places: Places) -> None:
        """Join all of these that are near each other."""
        if len(places) < 2 or (self.group[places] == self.group[places[0]]).all():
            return
        hashes = self._distinct[places]
        varying = int(np.bitwise_or.reduce(hashes ^ hashes[0]))
        bits = [bit for bit in range(_BITS) if varying >> bit & 1]
        if len(bits) <= self._distance:
            self._join(places[:-1], places[1:])
            return
        for mask in _masks(bits, self._distance, len(places)):
            self._join_agreeing(places, hashes, mask)

    def _join_agreeing(self, places: Places, hashes: Hashes, mask: np.uint64) -> None:
        """Join all of these that are near each other and agree in the bits of `mask`, some of which vary."""
        keys = hashes & mask
        order = np.argsort(keys)
        keys, places, hashes = keys[order], places[order], hashes[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        sizes = np.diff(np.r_[starts, len(keys)])
        ends = np.repeat(np.where(sizes > _MANY, 0, starts + sizes), sizes)
        rows = np.arange(len(keys))
        for step in range(1, _MANY):
            rows = rows[rows + step < ends[rows]]
            if not len(rows):
                break
            near = rows[np.bitwise_count(hashes[rows] ^ hashes[rows + step]) <= self._distance]
            self._join(places[near], places[near + step])
        for run in np.flatnonzero(sizes > _MANY):
            self.join_near(places[starts[run] : starts[run] + sizes[run]])

    def _join(self, ones: Places, others: Places) -> None:
        ones, others = self.group[ones], self.group[others]
        apart = ones != others
        self._waiting.append((ones[apart], others[apart]))
        self._pairs += int(apart.sum())
        if self._pairs > len(self.group) // _WAITING:
            self.settle()

    def settle(self) -> None:
        """Let `group` know of all that was joined."""
        from scipy.sparse import coo_array  # noqa: PLC0415 - takes longer to import than a small search
        from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

        if self._pairs:
            ones, others = (np.concatenate(side) for side in zip(*self._waiting, strict=True))
            size = len(self.group)
            graph = coo_array((np.ones(len(ones), np.bool_), (ones, others)), shape=(size, size))
            self.group = connected_components(graph, directed=False)[1].astype(np.int64)[self.group]
        self._waiting, self._pairs = [], 0
