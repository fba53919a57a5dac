"""Faces made unrecognisable, as DataComp and ImageNet do it: boxes, and a tenth around them, fade into a blur."""

from __future__ import annotations

import math

import cv2
import numpy as np

from ingest.faces import Boxes

_AROUND = 0.1
"""How much wider a box is made on each side, and how wide the blur is, as a share of the box's longer side."""
_WIDEST = 8.0
"""A wider blur is made of a smaller picture: the same to the eye, and its cost does not grow."""


def blur(pixels: np.ndarray, boxes: Boxes) -> np.ndarray:
    """`pixels` (height, width[, 3]) uint8 with all `boxes` blurred; of the widest face's blur, as in img2dataset."""
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    longest = 0.0
    for left, top, right, bottom in boxes:
        side = max((right - left) * width, (bottom - top) * height, 1.0)
        longest = max(longest, side)
        around = _AROUND * side
        columns = slice(max(0, math.floor(left * width - around)), max(0, math.ceil(right * width + around)))
        rows = slice(max(0, math.floor(top * height - around)), max(0, math.ceil(bottom * height + around)))
        mask[rows, columns] = 255
    sigma = max(1.0, _AROUND * longest)
    blurred = _gaussian(pixels, sigma)
    # It fades outwards: what is in a box is blurred altogether.
    share = np.maximum(mask, _gaussian(mask, sigma)).reshape(height, width, *[1] * (pixels.ndim - 2)).astype(np.uint16)
    mixed: np.ndarray = ((pixels * (255 - share) + blurred * share + 127) // 255).astype(np.uint8)
    return mixed


def _gaussian(pixels: np.ndarray, sigma: float) -> np.ndarray:
    smaller = max(1, math.ceil(sigma / _WIDEST))
    height, width = pixels.shape[:2]
    if smaller > 1:
        size = (-(-width // smaller), -(-height // smaller))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    reach = 2 * math.ceil(3 * sigma / smaller) + 1
    pixels = cv2.GaussianBlur(pixels, (reach, reach), sigma / smaller, borderType=cv2.BORDER_REPLICATE)
    return pixels if smaller == 1 else cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
