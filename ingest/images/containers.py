"""PNG and WebP as boxes of chunks: which of them matter, without decoding anything."""

from __future__ import annotations

import struct

from ingest.images.refusal import RefusedError

PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = frozenset([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"])
_MOST_CHUNKS = 50_000
"""Encoders write pieces of 8 kB and more."""
_MOST_EXIF = 65_536


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
