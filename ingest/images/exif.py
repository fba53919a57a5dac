"""EXIF: pictures turned upright, and all tags as the JSON string that img2dataset stores.

Both are read from the EXIF segment alone (at most 64 kB), and the amount of work is limited: in a hostile file tags
overlap, point at each other and claim any length.
"""

from __future__ import annotations

import io
import json
import logging

import cv2
import exifread
import numpy as np

from pictures.exif import MOST_BYTES

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
_MOST_READS = 20_000
"""exifread reads about five times for a tag, and once for each of its values. A camera's block takes 500 to 3000."""
NONE = "{}"
"""The JSON of a picture without EXIF."""


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
    return text if len(text) <= MOST_BYTES else NONE


class _Sparing(io.BytesIO):
    """Lets so much be read and no more."""

    _reads, _bytes = _MOST_READS, 4 * MOST_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self._bytes + 1 if size is None else min(size, self._bytes + 1))
        self._reads -= 1
        self._bytes -= len(data)
        if self._reads < 0 or self._bytes < 0:
            raise ValueError("too much EXIF")
        return data
