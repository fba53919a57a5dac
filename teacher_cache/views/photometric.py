"""ColorJitter and RandAugment replayed from a view's numbers, by torchvision's functions on Pillow images.

Loads torch: imported by the first view that has such numbers.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision.transforms import functional as tv  # type: ignore[import-untyped]

from teacher_cache.views.view import OPERATIONS, Jitter, Operation

_ORDERS = list(itertools.permutations(range(4)))


def apply(
    pixels: npt.NDArray[np.uint8], jitter: Jitter | None, operations: tuple[Operation, ...]
) -> npt.NDArray[np.uint8]:
    """(size, size, 3) uint8, RGB → the same: the jitter first, then the operations in turn."""
    image = Image.fromarray(pixels)
    if jitter is not None:
        image = _jittered(image, jitter)
    for operation in operations:
        image = OPERATIONS[operation.name].does(tv, image, operation.magnitude)
    return np.array(image)


def _jittered(image: Image.Image, jitter: Jitter) -> Image.Image:
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for step in _ORDERS[jitter.order]:
        # Turning the hue by nothing still rounds to HSV and back.
        if step != 3 or jitter.hue != 0:
            image = steps[step](image, jitter[step])
    return image
