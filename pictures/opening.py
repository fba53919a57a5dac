"""Bytes → pixels, strictly: what is truncated, too large or of an unwanted kind is refused with its cause.

JPEG goes through libjpeg-turbo, at a reduced scale where that is wanted; everything else, and JPEGs that it finds
fault with, through Pillow. The sizes are checked from the header, before there are any pixels.
"""

from __future__ import annotations

import re

from pictures.containers import PNG
from pictures.jpeg import Jpeg
from pictures.kind import unidentified
from pictures.others import Other
from pictures.refusal import RefusedError

_JPEG = b"\xff\xd8\xff"
_FORESEEABLE = re.compile(re.escape(PNG) + rb"|RIFF....WEBP", re.DOTALL)
_UNFORESEEABLE = re.compile(
    rb"GIF8[79]a|BM|II[*+]\0|MM\0[*+]|P[0-6fy]|\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n|....ftyp", re.DOTALL
)
"""GIF, BMP, TIFF, PPM, JPEG 2000 and AVIF."""

_SIDEWAYS = 5
"""From this turn on (of EXIF's eight) a picture's height is its width."""
_MOST_PIXELS = 1_000_000_000

Picture = Jpeg | Other
"""Both have `size`, `format`, `exif`, `is_plain()`, `memory(scale)`, `turn()` and `decode(scale, fine=...)`."""


class UnforeseeableError(Exception):
    """No header tells what opening and decoding this image may cost.

    Of these kinds some files of a few kB take minutes or gigabytes, in Pillow's loops, in libtiff, OpenJPEG and dav1d.
    """


def open_image(body: bytes, max_pixels: int, *, alone: bool) -> Picture:
    """The image with its header read and nothing decoded; refuses what is none or has more than `max_pixels`.

    Raises `UnforeseeableError` unless this process is `alone`: there to be ended when an image takes too much.
    """
    image: Picture
    if body.startswith(_JPEG):
        image = Jpeg(body)
        foreseeable = image.is_usual
    else:
        foreseeable = _FORESEEABLE.match(body) is not None
        if not foreseeable and _UNFORESEEABLE.match(body) is None:
            raise RefusedError("not_an_image", unidentified(body))
        if not foreseeable and not alone:
            raise UnforeseeableError
        image = Other(body)
    width, height = image.size
    if width * height > max_pixels:
        raise RefusedError("bomb", f"{width}x{height} pixels, the limit is {max_pixels}")
    if not foreseeable and not alone:
        raise UnforeseeableError
    return image


def upright_size(body: bytes) -> tuple[int, int]:
    """Width and height of the image as it is shown, by its header. Raises as `open_image` does."""
    image = open_image(body, _MOST_PIXELS, alone=False)
    across, down = image.size
    return (down, across) if image.turn() >= _SIDEWAYS else (across, down)
