"""EXIF: the turn that puts a picture upright, and all tags as the JSON string that img2dataset stores."""

from __future__ import annotations

import io
import json
import logging

import cv2
import exifread
import numpy as np
from PIL import ExifTags, Image

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
_HOLDERS = {"exif", "xmp"}
"""Where Pillow keeps a JPEG's segments that may tell its orientation."""


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF counts, of an image after `decode`.

    Not before: PNG may have EXIF behind its pixels, and Pillow turns TIFF by itself when it decodes it.
    """
    if image.format in {"JPEG", "MPO"} and not _HOLDERS & image.info.keys():
        return 1
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - garbage where EXIF should be says nothing of the pixels
        return 1
    return found if found in _UPRIGHT else 1


def swaps_sides(turn: int) -> bool:
    """Whether width and height change places."""
    return turn in _ASKEW


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """The picture turned as its `orientation` asks for."""
    rotate, mirror = _UPRIGHT.get(turn, (None, None))
    if rotate is not None:
        pixels = cv2.rotate(pixels, rotate)
    return pixels if mirror is None else cv2.flip(pixels, mirror)


def exif_json(image: Image.Image, body: bytes) -> str | None:
    """img2dataset's string for the file `body`, or None if there is no EXIF that exifread can read."""
    if image.format != "TIFF" and "exif" not in image.info:
        return None
    try:
        tags = exifread.process_file(io.BytesIO(body), details=False)
        plain = {name: str(value).strip() for name, value in tags.items() if value is not None}
    except Exception:  # noqa: BLE001 - it raises anything on garbage; img2dataset too stores nothing then
        return None
    return json.dumps(plain) if plain else None
