"""What storage, networks and forgers do to a file's bytes, drawn from a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

_FORGED = [0, 1, 127, 255, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1]
"""Numbers that sizes, offsets and lengths are forged to; -1 is the largest of each width."""


def flipped(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 1, 3, 20])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwritten(data: bytearray, chance: random.Random) -> None:
    at, size = chance.randrange(len(data)), chance.choice([1, 4, 8, 64, 512])
    filling = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size)])
    data[at : at + size] = filling[: len(data) - at]


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def shortened(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice([1, 7, 64, 512, 4096])]


def lengthened(data: bytearray, chance: random.Random) -> None:
    at = chance.choice([0, len(data), chance.randrange(len(data))])
    size = chance.choice([1, 7, 64, 512])
    data[at:at] = chance.choice([bytes(size), chance.randbytes(size), data[at : at + size]])


def swapped(data: bytearray, chance: random.Random) -> None:
    size = chance.choice([16, 64, 512, 4096])
    one, other = (chance.randrange(len(data)) // size * size for _ in range(2))
    first, second = data[one : one + size], data[other : other + size]
    if len(first) == len(second):
        data[one : one + size], data[other : other + size] = second, first


def forged(data: bytearray, chance: random.Random) -> None:
    """A number of 2, 4 or 8 bytes somewhere is another one; near the ends, where footers are, more often."""
    form, width = chance.choice([("<H", 2), ("<I", 4), ("<Q", 8), ("<i", 4), ("<q", 8)])
    if len(data) < 2 * width:
        return
    near = chance.randrange(len(data) - width)
    at = chance.choice([near, near, min(near, 64), max(len(data) - width - near % 600, 0)])
    value = chance.choice([*_FORGED, -1, -chance.randrange(1 << 20), chance.randrange(1 << 40)])
    whole = value & ((1 << 8 * width) - 1)
    data[at : at + width] = struct.pack(form.upper(), whole)


BYTES: list[Callable[[bytearray, random.Random], None]] = [
    *(flipped, flipped, overwritten, cut, shortened, lengthened, swapped, forged, forged),
]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes after one to three of these."""
    held = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if held:
            chance.choice(BYTES)(held, chance)
    return bytes(held)
