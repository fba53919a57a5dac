"""EXIF: the turn that puts a picture upright, and all tags as the JSON string that img2dataset stores.

Both are read from the EXIF segment alone (at most 64 kB), and the amount of work is limited: in a hostile file tags
overlap, point at each other and claim any length.
"""

from __future__ import annotations

import io
import json
import logging
import re
import struct

import cv2
import exifread
import numpy as np

# Odd tags are the web's daily bread, not news.
logging.getLogger("exifread").disabled = True

_UPRIGHT = {
    2: (None, 1),
    3: (cv2.ROTATE_180, None),
    4: (None, 0),
    5: (cv2.ROTATE_90_CLOCKWISE, 1),
    6: (cv2.ROTATE_90_CLOCKWISE, None),
    7: (cv2.ROTATE_90_CLOCKWISE, 0),
    8: (cv2.ROTATE_90_COUNTERCLOCKWISE, None),
}
"""EXIF's orientations: how to rotate, then how to mirror (cv2.flip's code)."""
_ASKEW = {5, 6, 7, 8}
_MOST_BYTES = 65_536
"""What one segment of a JPEG can hold; of an EXIF block and of its JSON."""
_MOST_READS = 20_000
"""exifread reads about five times for a tag, and once for each of its values. A camera's block takes 500 to 3000."""
_ORIENTATION = 0x0112
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I"}
_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
NONE = "{}"
"""The JSON of a picture without EXIF."""


def plain_exif(block: bytes) -> bytes:
    """The EXIF block as a TIFF file, which is what it is, without the name that some formats put in front."""
    return block[:_MOST_BYTES].removeprefix(b"Exif\0\0")


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1 to 8, as EXIF counts; XMP is asked where `exif` has none."""
    try:
        found = _orientation(exif)
    except struct.error:  # garbage where EXIF should be says nothing of the pixels
        found = None
    if found is None:
        said = _XMP.search(xmp[:_MOST_BYTES])
        found = int(said[1]) if said else 1
    return found if found in _UPRIGHT else 1


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


def swaps_sides(turn: int) -> bool:
    """Whether width and height change places."""
    return turn in _ASKEW


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """The picture turned as its `orientation` asks for."""
    rotate, mirror = _UPRIGHT.get(turn, (None, None))
    if rotate is not None:
        pixels = cv2.rotate(pixels, rotate)
    return pixels if mirror is None else cv2.flip(pixels, mirror)


def exif_json(exif: bytes) -> str:
    """img2dataset's string for an EXIF block or a TIFF file; `NONE` if exifread can read none, or if it is too much."""
    if not exif:
        return NONE
    try:
        tags = exifread.process_file(_Sparing(exif), details=False)
        text = json.dumps({name: str(value).strip() for name, value in tags.items() if value is not None})
    except Exception:  # noqa: BLE001 - it raises anything on garbage; img2dataset too stores nothing then
        return NONE
    return text if len(text) <= _MOST_BYTES else NONE


class _Sparing(io.BytesIO):
    """Lets so much be read and no more."""

    _reads, _bytes = _MOST_READS, 4 * _MOST_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self._bytes + 1 if size is None else min(size, self._bytes + 1))
        self._reads -= 1
        self._bytes -= len(data)
        if self._reads < 0 or self._bytes < 0:
            raise ValueError("too much EXIF")
        return data
