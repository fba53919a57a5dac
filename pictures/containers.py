"""Walk the chunks of PNG, WebP and JPEG 2000 files: which matter, and whether they can be afforded. Decodes nothing."""

from __future__ import annotations

import struct

from pictures.refusal import RefusedError

PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_MOST_CHUNKS = 50_000
"""Encoders write pieces of 8 kB and more."""
_MOST_EXIF = 65_536
_MOST_LINES = 300_000_000
"""Bytes of a PNG's unpacked lines, 100 megapixels of RGB: up to two seconds of zlib and filters."""
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_MOST_TILES = 10_000
"""Of a JPEG 2000, whose decoder keeps 12 kB for each: 100 megapixels in tiles of 100x100."""
_CODESTREAM = b"\xff\x4f\xff\x51"


def without_notes(body: bytes) -> tuple[bytes, bytes, bool]:
    """A PNG with nothing but its first picture; its EXIF (`b""` if it has none); whether it has more pictures.

    Texts and colour profiles are not needed and may unpack to any size; there is no limit to their number either.
    """
    exif, animated = b"", False
    kept: list[tuple[int, int]] = [(0, len(PNG))]
    at = len(PNG)
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(body):
            break
        size, kind = struct.unpack_from(">I4s", body, at)
        end = min(at + 12 + size, len(body))
        if kind in _PIXELS:
            if kept[-1][1] == at:
                kept[-1] = (kept[-1][0], end)
            else:
                kept.append((at, end))
        elif kind == b"eXIf" and size <= _MOST_EXIF:
            exif = body[at + 8 : at + 8 + size]
        elif kind == b"acTL":
            animated = True
        at = end
        if kind == b"IEND":
            break
    else:
        raise RefusedError("bomb", f"a PNG of more than {_MOST_CHUNKS} chunks")
    whole = len(kept) == 1 and kept[0][1] == len(body)
    return body if whole else b"".join(body[start:end] for start, end in kept), exif, animated


def check_png(body: bytes) -> None:
    """Refuse a PNG that takes too long to unpack."""
    width, height, bits, colour = struct.unpack_from(">IIBB", body.ljust(26, b"\0"), 16)
    lines = width * height * bits * _PNG_CHANNELS.get(colour, 1) // 8
    if lines > _MOST_LINES:
        raise RefusedError("bomb", f"{lines // 10**6} MB of pixels, the limit for a PNG is {_MOST_LINES // 10**6}")


def check_jpeg_2000(body: bytes) -> None:
    """Refuse a JPEG 2000 of too many tiles."""
    at = body.find(_CODESTREAM)
    if at < 0 or at + 40 > len(body):
        return
    right, bottom, _, _, across, down = struct.unpack_from(">6I", body, at + 8)
    tiles = -(-right // max(1, across)) * -(-bottom // max(1, down))
    if tiles > _MOST_TILES:
        raise RefusedError("bomb", f"a JPEG 2000 of {tiles} tiles, the limit is {_MOST_TILES}")


def check_webp(body: bytes) -> None:
    """Refuse a WebP that ends early, which Pillow would not know for one, or that consists of too many chunks."""
    if len(body) < 8 + int.from_bytes(body[4:8], "little"):
        raise RefusedError("truncated", f"{len(body)} bytes of a longer WebP")
    at = 12
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(body):
            return
        size = int.from_bytes(body[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    raise RefusedError("bomb", f"a WebP of more than {_MOST_CHUNKS} chunks")
