"""ColorJitter and RandAugment replayed from a view's numbers, by torchvision's functions on Pillow images.

Loads torch: imported by the first view that has such numbers.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import functional as tv  # type: ignore[import-untyped]

from shards.lazy import resolve
from teacher_cache.views.view import OPERATIONS, Jitter, Operation


def _sheared(image: Image.Image, across: float, down: float) -> Image.Image:
    shear = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
    sheared: Image.Image = tv.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
    return sheared


def _moved(image: Image.Image, across: float, down: float) -> Image.Image:
    pixels = [int(across * image.width), int(down * image.height)]
    moved: Image.Image = tv.affine(image, angle=0.0, translate=pixels, scale=1.0, shear=[0.0, 0.0])
    return moved


# RandAugment's operations, as torchvision applies them: nearest pixels, black where there are none. Each takes an image
# and its magnitude, in the units of `OPERATIONS`.


def identity(image: Image.Image, _: float) -> Image.Image:
    return image


def shear_x(image: Image.Image, tangent: float) -> Image.Image:
    return _sheared(image, tangent, 0)


def shear_y(image: Image.Image, tangent: float) -> Image.Image:
    return _sheared(image, 0, tangent)


def translate_x(image: Image.Image, fraction: float) -> Image.Image:
    return _moved(image, fraction, 0)


def translate_y(image: Image.Image, fraction: float) -> Image.Image:
    return _moved(image, 0, fraction)


def brightness(image: Image.Image, more: float) -> Image.Image:
    return tv.adjust_brightness(image, 1 + more)  # type: ignore[no-any-return]


def color(image: Image.Image, more: float) -> Image.Image:
    return tv.adjust_saturation(image, 1 + more)  # type: ignore[no-any-return]


def contrast(image: Image.Image, more: float) -> Image.Image:
    return tv.adjust_contrast(image, 1 + more)  # type: ignore[no-any-return]


def sharpness(image: Image.Image, more: float) -> Image.Image:
    return tv.adjust_sharpness(image, 1 + more)  # type: ignore[no-any-return]


def posterize(image: Image.Image, bits: float) -> Image.Image:
    return tv.posterize(image, int(bits))  # type: ignore[no-any-return]


def autocontrast(image: Image.Image, _: float) -> Image.Image:
    return tv.autocontrast(image)  # type: ignore[no-any-return]


def equalize(image: Image.Image, _: float) -> Image.Image:
    return tv.equalize(image)  # type: ignore[no-any-return]


_ORDERS = list(itertools.permutations(range(4)))


def apply(
    pixels: npt.NDArray[np.uint8], jitter: Jitter | None, operations: tuple[Operation, ...]
) -> npt.NDArray[np.uint8]:
    """(size, size, 3) uint8, RGB → the same: the jitter first, then the operations in turn."""
    image = Image.fromarray(pixels)
    if jitter is not None:
        image = _jittered(image, jitter)
    for operation in operations:
        image = resolve(OPERATIONS[operation.name].does)(image, operation.magnitude)
    return np.array(image)


def _jittered(image: Image.Image, jitter: Jitter) -> Image.Image:
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for step in _ORDERS[jitter.order]:
        # Turning the hue by nothing still rounds to HSV and back.
        if step != 3 or jitter.hue != 0:
            image = steps[step](image, jitter[step])
    return image
