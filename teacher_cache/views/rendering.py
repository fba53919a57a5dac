"""Image and view → pixels. One function for teacher and student, a student's at every step: fast, and the same bits
on every machine.

    JPEG at 1/1, 1/2, 1/4 or 1/8 → crop at whole pixels → integer-factor average, where much larger than wanted
    → linear (to twice the size, then a 2x2 average, where it is larger) → mirror → colours

Each step depends on the image's sizes, the view and the wanted size alone. Antialiasing is close to a bicubic filter's
at a tenth of its cost; OpenCV's cubic differs from one kind of CPU to the next.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from teacher_cache.views.encoded import EncodedImage, as_rgb
from teacher_cache.views.view import View

# Several images are rendered at once; each gets one core.
cv2.setNumThreads(1)

_SCALES = {8: 3.0, 4: 2.0, 2: 1.5}
"""A JPEG is decoded at one of these fractions if that leaves so many pixels for each that is wanted."""
_TWICE = 1.55
"""Pixels for each wanted, in either direction: from here on take two samples each.

A 4:3 image of which ingest left 256 pixels has 1.52 of them for each of 224 at most. There one sample is nearer to a
bicubic filter on real photos (46.7 dB, with two 45.8), at half the cost of all that follows the decoding.
"""
_RIBBON = 16
"""Times as long as wide: from here on `centre` resizes only what it keeps."""
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
"""Pillow's, for evaluation; both antialias."""

Pixels = npt.NDArray[np.uint8]


def crop(image: EncodedImage, view: View, size: int, out: Pixels | None = None) -> Pixels:
    """(size, size, 3) uint8, RGB, `out` if given: the view's crop resized, mirrored, its colours changed."""
    room = min(view.width * image.width, view.height * image.height) / size
    scale = next((scale for scale, least in _SCALES.items() if room >= scale * least), 1) if image.reducible else 1
    pixels = image.pixels(scale)
    top, bottom = _span(view.top, view.height, image.height / scale, pixels.shape[0])
    left, right = _span(view.left, view.width, image.width / scale, pixels.shape[1])
    plain = not (view.flip or view.jitter is not None or view.operations)
    rendered = _resize(pixels[top:bottom, left:right], size, out if plain else None)
    if view.flip:
        rendered = np.asarray(cv2.flip(rendered, 1), np.uint8)
    if view.jitter is not None or view.operations:
        # Loads torch, which views without colours do not need.
        from teacher_cache.views import photometric  # noqa: PLC0415

        rendered = photometric.apply(rendered, view.jitter, view.operations)
    return into(out, rendered)


def into(out: Pixels | None, pixels: Pixels) -> Pixels:
    """`out`, holding these pixels, or they themselves without one."""
    if out is None or out is pixels:
        return pixels
    out[...] = pixels
    return out


def centre(image: EncodedImage, size: int, interpolation: str) -> Pixels:
    """(size, size, 3) uint8, RGB: open_clip's preprocessing for evaluation, `resize_mode` "shortest".

    Resized in the picture's own mode with the shorter side to `size`, `interpolation` bicubic or bilinear, then the
    middle square, to RGB at the end. Of upright pictures; and 16-bit greys, which open_clip turns white, are kept.
    """
    picture = image.picture()
    width, height = picture.size
    shorter = min(width, height)
    # torchvision rounds the longer side down, and the middle to the nearest, halves to even.
    across, down = int(size * width / shorter), int(size * height / shorter)
    left, top = round((across - size) / 2.0), round((down - size) / 2.0)
    if max(across, down) > _RIBBON * size:
        # Whole it would fill the memory. This way it may differ by a rounding.
        box = left * width / across, top * height / down, (left + size) * width / across, (top + size) * height / down
        return np.array(as_rgb(picture.resize((size, size), _FILTERS[interpolation], box)))
    resized = picture.resize((across, down), _FILTERS[interpolation])
    return np.array(as_rgb(resized.crop((left, top, left + size, top + size))))


def squash(image: EncodedImage, size: int, interpolation: str) -> Pixels:
    """(size, size, 3) uint8, RGB: open_clip's `resize_mode` "squash", the whole picture, bicubic or bilinear."""
    return np.array(as_rgb(image.picture().resize((size, size), _FILTERS[interpolation])))


def _span(start: float, length: float, scaled: float, available: int) -> tuple[int, int]:
    """The whole pixels of a fraction of a side, which measures `scaled`, and at least one."""
    first = min(max(round(start * scaled), 0), available - 1)
    return first, min(max(round((start + length) * scaled), first + 1), available)


def _resize(pixels: Pixels, size: int, out: Pixels | None) -> Pixels:
    """(height, width, 3) uint8 → (size, size, 3), into `out` if given."""
    height, width = pixels.shape[:2]
    if max(height, width) < _TWICE * size:
        return _scaled(pixels, size, size, cv2.INTER_LINEAR, out)
    # What is left for the linear step is under four pixels for each wanted, two for each of its samples.
    down, across = max(1, height // (2 * size)), max(1, width // (2 * size))
    if down > 1 or across > 1:
        rows, columns = height // down, width // across
        top, left = (height - rows * down) // 2, (width - columns * across) // 2
        pixels = pixels[top : top + rows * down, left : left + columns * across]
        pixels = _scaled(pixels, columns, rows, cv2.INTER_AREA)
    twice = _scaled(pixels, 2 * size, 2 * size, cv2.INTER_LINEAR)
    return _scaled(twice, size, size, cv2.INTER_AREA, out)


def _scaled(pixels: Pixels, width: int, height: int, interpolation: int, out: Pixels | None = None) -> Pixels:
    # OpenCV writes to where it is told if that has the very shape, and returns an array of its own otherwise.
    return np.asarray(cv2.resize(pixels, (width, height), dst=out, interpolation=interpolation), np.uint8)
