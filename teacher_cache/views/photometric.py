"""ColorJitter and RandAugment replayed from a view's numbers, by torchvision's functions on Pillow images.

Loads torch: imported by the first view that has such numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import functional as tv  # type: ignore[import-untyped]

from teacher_cache.views.view import Jitter, Operation


def _sheared(image: Image.Image, across: float, down: float) -> Image.Image:
    shear = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
    sheared: Image.Image = tv.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
    return sheared


def _moved(image: Image.Image, across: float, down: float) -> Image.Image:
    pixels = [int(across * image.width), int(down * image.height)]
    moved: Image.Image = tv.affine(image, angle=0.0, translate=pixels, scale=1.0, shear=[0.0, 0.0])
    return moved


_OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, tangent: _sheared(image, tangent, 0),
    "ShearY": lambda image, tangent: _sheared(image, 0, tangent),
    "TranslateX": lambda image, fraction: _moved(image, fraction, 0),
    "TranslateY": lambda image, fraction: _moved(image, 0, fraction),
    "Rotate": tv.rotate,
    "Brightness": lambda image, more: tv.adjust_brightness(image, 1 + more),
    "Color": lambda image, more: tv.adjust_saturation(image, 1 + more),
    "Contrast": lambda image, more: tv.adjust_contrast(image, 1 + more),
    "Sharpness": lambda image, more: tv.adjust_sharpness(image, 1 + more),
    "Posterize": lambda image, bits: tv.posterize(image, int(bits)),
    "Solarize": tv.solarize,
    "AutoContrast": lambda image, _: tv.autocontrast(image),
    "Equalize": lambda image, _: tv.equalize(image),
}
"""As torchvision's RandAugment applies them: nearest pixels, black where there are none."""
_ORDERS = list(itertools.permutations(range(4)))


def apply(
    pixels: npt.NDArray[np.uint8], jitter: Jitter | None, operations: tuple[Operation, ...]
) -> npt.NDArray[np.uint8]:
    """(size, size, 3) uint8, RGB → the same: the jitter first, then the operations in turn."""
    image = Image.fromarray(pixels)
    if jitter is not None:
        image = _jittered(image, jitter)
    for operation in operations:
        image = _OPERATIONS[operation.name](image, operation.magnitude)
    return np.array(image)


def _jittered(image: Image.Image, jitter: Jitter) -> Image.Image:
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for step in _ORDERS[jitter.order]:
        # Turning the hue by nothing still rounds to HSV and back.
        if step != 3 or jitter.hue != 0:
            image = steps[step](image, jitter[step])
    return image
