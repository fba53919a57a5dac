"""What a view is, and the 17 or 32 bytes in which a cache keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Range(NamedTuple):
    """What an operation does, given torchvision's functions, a Pillow image and a magnitude, and which magnitudes there
    are: `start` is RandAugment's 0, `stop` its 30; `signed`: it takes either sign.
    """

    does: Callable[[Any, Any, float], Any]
    start: float = 0
    stop: float = 0
    signed: bool = False


def _sheared(tv: Any, image: Any, across: float, down: float) -> Any:
    shear = [math.degrees(math.atan(across)), math.degrees(math.atan(down))]
    return tv.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])


def _moved(tv: Any, image: Any, across: float, down: float) -> Any:
    pixels = [int(across * image.width), int(down * image.height)]
    return tv.affine(image, angle=0.0, translate=pixels, scale=1.0, shear=[0.0, 0.0])


OPERATIONS: dict[str, Range] = {
    "Identity": Range(lambda _tv, image, _: image),
    "ShearX": Range(lambda tv, image, tangent: _sheared(tv, image, tangent, 0), 0, 0.3, True),
    "ShearY": Range(lambda tv, image, tangent: _sheared(tv, image, 0, tangent), 0, 0.3, True),
    "TranslateX": Range(lambda tv, image, fraction: _moved(tv, image, fraction, 0), 0, 150 / 331, True),
    "TranslateY": Range(lambda tv, image, fraction: _moved(tv, image, 0, fraction), 0, 150 / 331, True),
    "Rotate": Range(lambda tv, image, degrees: tv.rotate(image, degrees), 0, 30, True),
    "Brightness": Range(lambda tv, image, more: tv.adjust_brightness(image, 1 + more), 0, 0.9, True),
    "Color": Range(lambda tv, image, more: tv.adjust_saturation(image, 1 + more), 0, 0.9, True),
    "Contrast": Range(lambda tv, image, more: tv.adjust_contrast(image, 1 + more), 0, 0.9, True),
    "Sharpness": Range(lambda tv, image, more: tv.adjust_sharpness(image, 1 + more), 0, 0.9, True),
    "Posterize": Range(lambda tv, image, bits: tv.posterize(image, int(bits)), 8, 4),
    "Solarize": Range(lambda tv, image, threshold: tv.solarize(image, threshold), 255, 0),
    "AutoContrast": Range(lambda tv, image, _: tv.autocontrast(image)),
    "Equalize": Range(lambda tv, image, _: tv.equalize(image)),
}
"""RandAugment's space, in torchvision's order: a view keeps an operation's place here, so others come after these.
Shears are tangents, translations fractions of the side, rotations degrees; the enhancements stand for the factor less
one, Posterize for the bits that are kept, Solarize for the threshold in 0 to 255."""

NAMES = list(OPERATIONS)
_NONE = 255
_GEOMETRY = [(name, "<f4") for name in ("left", "top", "width", "height")]
CROP = np.dtype([*_GEOMETRY, ("flip", "u1")])
PHOTOMETRIC = np.dtype(
    [*CROP.descr, ("jitter", "<f2", 4), ("order", "u1"), ("operations", "u1", 2), ("magnitudes", "<f2", 2)]
)


class Jitter(NamedTuple):
    """ColorJitter's draw: three factors, the hue's shift in turns (-0.5 to 0.5), and in which order they apply.

    `order`, 0 to 23, counts the permutations of (brightness, contrast, saturation, hue) in lexicographic order.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: int


class Operation(NamedTuple):
    """One of RandAugment's operations, and its signed magnitude in the units of `OPERATIONS`."""

    name: str
    magnitude: float


class View(NamedTuple):
    """A crop as fractions of the upright image's width and height, then a mirror flag, then what is done to colours.

    The fractions are exactly float32, the rest exactly float16: what is drawn equals what is read back from a cache.
    """

    left: float
    top: float
    width: float
    height: float
    flip: bool
    jitter: Jitter | None = None
    operations: tuple[Operation, ...] = ()


def pack(views: Sequence[View], *, photometric: bool) -> npt.NDArray[np.void]:
    """(n,) of `PHOTOMETRIC`, or of `CROP`: what a cache keeps of these views."""
    if not photometric:
        return np.array([view[:5] for view in views], CROP)
    return np.array([(*view[:5], *_packed_colours(view)) for view in views], PHOTOMETRIC)


def unpack(records: npt.NDArray[np.void]) -> list[View]:
    """The views that were packed."""
    if records.dtype == CROP:
        return [View(a, b, c, d, flip != 0) for a, b, c, d, flip in records.tolist()]
    return [_unpacked(fields) for fields in records.tolist()]


def _unpacked(fields: tuple[Any, ...]) -> View:
    left, top, width, height, flip, jitter, order, names, magnitudes = fields
    operations = tuple(
        Operation(NAMES[name], magnitude)
        for name, magnitude in zip(names.tolist(), magnitudes.tolist(), strict=True)
        if name != _NONE
    )
    drawn = None if order == _NONE else Jitter._make([*jitter.tolist(), order])
    return View(left, top, width, height, bool(flip), drawn, operations)


def _packed_colours(view: View) -> tuple[object, ...]:
    assert len(view.operations) <= 2, "a record has room for two operations"
    *jitter, order = view.jitter or (0.0, 0.0, 0.0, 0.0, _NONE)
    missing = 2 - len(view.operations)
    names = [NAMES.index(name) for name, _ in view.operations] + [_NONE] * missing
    magnitudes = [magnitude for _, magnitude in view.operations] + [0.0] * missing
    return jitter, order, names, magnitudes
