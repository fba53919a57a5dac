"""Sizes and pixels of the stored image: img2dataset's resize modes, with its pixels or with cheaper ones.

The cheaper way is as near to a Lanczos filter as averaging over areas is, at a fraction of its cost:

    JPEG at 1/2, 1/4 or 1/8 → linear, to twice the size that is wanted → 2x2 average → a touch of sharpening
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from ingest.images.scratch import scratch
from ingest.settings import ImageSettings

# Several images are resized at once; each gets one core.
cv2.setNumThreads(1)

_SCALES = {8: 3.0, 4: 2.0, 2: 1.5}
"""A JPEG may be decoded at one of these fractions if that leaves so many pixels for each that is wanted."""
_TWICE, _AREA = 1.5, 3.0
"""Pixels for each wanted, in one direction: from here on take two samples each; from here on average over areas."""
_SHARPEN = np.array([-3, 70, -3], np.float32) / 64
"""Undoes the blur of linear interpolation and averaging. In 64ths, so that every machine rounds alike."""


def resized(settings: ImageSettings, width: int, height: int) -> tuple[int, int]:
    """Width and height after resizing, before any crop or border, of an image of these sizes when upright."""
    fit = {"keep_ratio": min, "center_crop": min, "keep_ratio_largest": max, "border": max}.get(settings.resize_mode)
    if fit is None or (fit(width, height) <= settings.size and not settings.enlarge):
        return width, height
    scale = settings.size / fit(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def is_fitted(settings: ImageSettings, width: int, height: int) -> bool:
    """Whether crop and border apply: like img2dataset's, they do only to what is resized."""
    side = {"center_crop": min, "border": max}.get(settings.resize_mode)
    return side is not None and (settings.enlarge or side(width, height) > settings.size)


def decoding_scale(width: int, height: int, target: tuple[int, int]) -> int:
    """1, 2, 4 or 8: by how much smaller a JPEG of these sizes may be decoded on its way to `target`."""
    room = min(width / target[0], height / target[1])
    return next((scale for scale, least in _SCALES.items() if room >= scale * least), 1)


def resize(pixels: np.ndarray, target: tuple[int, int], *, exact: bool) -> np.ndarray:
    """`pixels` (height, width[, channels]) uint8 at the width and height `target`."""
    height, width = pixels.shape[:2]
    if (width, height) == target:
        return pixels
    least, room = sorted((width / target[0], height / target[1]))
    if least < 1:
        return cv2.resize(pixels, target, interpolation=cv2.INTER_LANCZOS4)
    if exact or room >= _AREA:
        return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
    # Not cubic: OpenCV's differs from one kind of CPU to the next.
    if room >= _TWICE:
        twice = (2 * target[0], 2 * target[1])
        shape = (twice[1], twice[0], *pixels.shape[2:])
        into = scratch("twice", math.prod(shape))
        pixels = cv2.resize(
            pixels, twice, None if into is None else into.reshape(shape), interpolation=cv2.INTER_LINEAR
        )
        pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
    else:
        pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_LINEAR)
    return cv2.sepFilter2D(pixels, -1, _SHARPEN, _SHARPEN, borderType=cv2.BORDER_REPLICATE)


def fitted(settings: ImageSettings, pixels: np.ndarray) -> np.ndarray:
    """The middle square of `size`, or the whole picture on a white one."""
    height, width = pixels.shape[:2]
    size = settings.size
    if settings.resize_mode == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        return pixels[top : top + size, left : left + size]
    top, left = (size - height) // 2, (size - width) // 2
    bottom, right = size - height - top, size - width - left
    return cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
