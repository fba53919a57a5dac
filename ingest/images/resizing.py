"""Sizes and pixels of the stored image: img2dataset's resize modes, with its pixels or with cheaper ones.

The cheaper way is nearer to a Lanczos filter than averaging over areas is, at a fraction of its cost:

    JPEG at 1/2, 1/4 or 1/8, others by 2x2 averages → linear, to twice the wanted size → 2x2 average → sharpening
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from ingest.settings import ImageSettings
from pictures.scratch import scratch

# Several images are resized at once; each gets one core.
cv2.setNumThreads(1)

_LEAST = 1.25
"""A JPEG may be decoded at a fraction, and others be halved, if that leaves so many pixels for each that is wanted."""
_FAST_COLOURS = 2.0
"""From here on it does not show that a JPEG's colours, which have a quarter of its pixels, are not interpolated."""


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
    return next((scale for scale in (8, 4, 2) if room >= scale * _LEAST), 1)


def needs_fine_colours(width: int, height: int, target: tuple[int, int]) -> bool:
    """Whether a JPEG's colours must be interpolated between its pixels."""
    return min(width / target[0], height / target[1]) < _FAST_COLOURS


def resize(pixels: np.ndarray, target: tuple[int, int], *, exact: bool) -> np.ndarray:
    """Grey (height, width), BGR (..., 3) or RGBX (..., 4) uint8 → grey or BGR at the width and height `target`."""
    least, room = _ratios(pixels, target)
    if least == room == 1:
        return as_bgr(pixels)
    if least < 1:
        return as_bgr(cv2.resize(pixels, target, interpolation=cv2.INTER_LANCZOS4))
    if exact or room > 2 * least:
        return as_bgr(cv2.resize(pixels, target, interpolation=cv2.INTER_AREA))
    while least >= 2 * _LEAST:
        half = ((pixels.shape[1] + 1) // 2, (pixels.shape[0] + 1) // 2)
        pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_LINEAR)
        least, room = _ratios(pixels, target)
    # Not cubic: OpenCV's differs from one kind of CPU to the next.
    twice = (2 * target[0], 2 * target[1])
    shape = (twice[1], twice[0], *pixels.shape[2:])
    into = scratch("twice", math.prod(shape))
    pixels = cv2.resize(pixels, twice, None if into is None else into.reshape(shape), interpolation=cv2.INTER_LINEAR)
    pixels = as_bgr(cv2.resize(pixels, target, interpolation=cv2.INTER_AREA))
    sharpen = _sharpening(least)
    return cv2.sepFilter2D(pixels, -1, sharpen, sharpen, borderType=cv2.BORDER_REPLICATE)


def as_bgr(pixels: np.ndarray) -> np.ndarray:
    """Grey as it is, and RGBX as BGR."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGR) if pixels.shape[2:] == (4,) else pixels


def _ratios(pixels: np.ndarray, target: tuple[int, int]) -> tuple[float, float]:
    """Pixels for each wanted, in the direction that has fewer and in the other."""
    height, width = pixels.shape[:2]
    least, room = sorted((width / target[0], height / target[1]))
    return least, room


def _sharpening(ratio: float) -> np.ndarray:
    """What undoes the blur of the linear step and the average; the nearer the sizes, the more they blur.

    Chosen by PSNR on photos (`benchmarks/ingest/quality.py`). In 64ths, so that every machine rounds alike.
    """
    strength = max(2, round(18.5 - 8.3 * ratio))
    return np.array([-strength, 64 + 2 * strength, -strength], np.float32) / 64


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
