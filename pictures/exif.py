"""The turn that puts a picture upright, from its EXIF block or its XMP.

Read from one segment alone, at most 64 kB of it: tags may overlap, point at each other and claim any length.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What puts a picture of each EXIF orientation upright."""
MOST_BYTES = 65_536
"""What one segment of a JPEG can hold."""
_ORIENTATION = 0x0112
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def plain_exif(block: bytes) -> bytes:
    """The EXIF block as a TIFF file, which is what it is, without the name that some formats put in front."""
    return block[:MOST_BYTES].removeprefix(b"Exif\0\0")


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1 to 8, as EXIF counts; XMP is asked where `exif` has none."""
    try:
        found = _orientation(exif)
    except struct.error:  # garbage where EXIF should be says nothing of the pixels
        found = None
    if found is None:
        said = _XMP.search(xmp[:MOST_BYTES])
        found = int(said[1]) if said else 1
    return found if 1 <= found <= 8 else 1


def _orientation(exif: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, at)
    entry = struct.Struct(f"{order}HHI")
    for start in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, _ = entry.unpack_from(exif, start)
        if tag == _ORIENTATION and kind in _WHOLE_NUMBERS:
            value: int = struct.unpack_from(order + _WHOLE_NUMBERS[kind], exif, start + 8)[0]
            return value
    return None
