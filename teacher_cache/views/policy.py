"""Which views there are of an image, and how each is drawn from a seed."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from shards.errors import UserError
from shards.settings import option, settings
from teacher_cache.views.view import CROP, NAMES, OPERATIONS, PHOTOMETRIC, Jitter, Operation, View, pack, unpack

if TYPE_CHECKING:
    from teacher_cache.views.encoded import EncodedImage

VIEWS_VERSION = 3
"""Goes up whenever `draw` or `render` would give other pixels; part of every cache's fingerprint."""

_BINS = 30
"""RandAugment's magnitudes are 0 to 30, its 31 bins."""


@settings
class ViewPolicy:
    """Which views there are of an image.

    `crop`: RandomResizedCrop as in torchvision, its area a uniform fraction in `scale`, its aspect ratio log-uniform in
    `ratio`; mirrored with probability `flip`; then, if asked for, `jitter` (torchvision's ColorJitter: the strengths of
    brightness, contrast, saturation and hue) and `rand_augment` (torchvision's RandAugment, arXiv:1909.13719: at most 2
    operations, their magnitude out of 0 to 30). The defaults are TinyCLIP's (scale 0.9 to 1, no mirroring).
    `centre` and `squash`: open_clip's preprocessing for evaluation, in its resize modes "shortest" and "squash", with
    its `interpolation`; the same for every index. `given`: drawn by somebody else and read from a cache, rendered like
    `crop`.
    Raises `UserError` for values that no view can be drawn from.
    """

    kind: Literal["crop", "centre", "squash", "given"] = "crop"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    scale: Annotated[tuple[float, float], option("crop areas", ("LOW", "HIGH"))] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Annotated[float, option("probability of mirroring", "P")] = 0.0
    jitter: Annotated[
        tuple[float, float, float, float],
        option("colour jitter: brightness, contrast, saturation, hue, as in torchvision", ("B", "C", "S", "H")),
    ] = (0.0, 0.0, 0.0, 0.0)
    rand_augment: Annotated[
        tuple[int, int] | None, option("N (1, 2) random operations of magnitude M (0-30)", ("N", "M"))
    ] = None

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1] and 0 <= self.flip <= 1):
            raise UserError(
                f"no views can be drawn at scale {self.scale}, ratio {self.ratio}, flip {self.flip}",
                do="scale is a range within 0 to 1, ratio a range above 0, flip a probability; each range ascends",
            )
        if not (all(0 <= strength < math.inf for strength in self.jitter) and self.jitter[3] <= 0.5):
            raise UserError(
                f"no views can be drawn with colours jittered by {self.jitter}",
                do="the strengths of brightness, contrast, saturation and hue are 0 or more, that of hue at most 0.5",
            )
        operations, magnitude = self.rand_augment or (1, 0)
        if operations not in {1, 2} or magnitude not in range(_BINS + 1):
            raise UserError(
                f"no views can be drawn with RandAugment's {operations} operations of magnitude {magnitude}",
                do=f"1 or 2 operations of a whole magnitude from 0 to {_BINS} can be had",
            )
        evaluation = self.kind in {"centre", "squash"}
        if self.interpolation not in ({"bicubic", "bilinear"} if evaluation else {"bicubic"}):
            raise UserError(
                f"no views of kind {self.kind} can be drawn with interpolation {self.interpolation!r}",
                do="leave it out; centre and squash take bicubic and bilinear",
            )
        if evaluation and (self.flip or self.photometric):
            raise UserError(
                f"views of kind {self.kind} are open_clip's for evaluation: no flip, jitter or RandAugment",
                do="leave these out, or draw views of kind crop",
            )

    @property
    def photometric(self) -> bool:
        """Whether views have more than a crop and a mirror flag."""
        return any(self.jitter) or self.rand_augment is not None or self.kind == "given"

    @property
    def dtype(self) -> np.dtype[np.void]:
        """Of a view's stored parameters: 17 bytes, with photometric ones 32."""
        return PHOTOMETRIC if self.photometric else CROP

    def identity(self) -> dict[str, Any]:
        """JSON-able; equal identities draw and render equal views."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"version": VIEWS_VERSION, **fields}

    @staticmethod
    def from_identity(identity: dict[str, Any]) -> ViewPolicy:
        """Raises `UserError` for views of another version."""
        if identity.get("version") != VIEWS_VERSION:
            raise UserError(
                f"these views are of version {identity.get('version')}, this program's of version {VIEWS_VERSION}",
                do="build the cache again",
            )
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in identity.items()
            if name != "version"
        }
        return ViewPolicy(**fields)

    def draw(self, key: str, index: int, width: int, height: int) -> View:
        """The view `index` of the sample `key`, whose upright image measures `width` x `height` pixels.

        Ten attempts to fit a crop, then the largest central one with an allowed ratio, as torchvision does. The views
        of kind `given` come from a cache only: asking for one is an `AssertionError`.
        """
        assert self.kind != "given", "given views are read from a cache"
        if self.kind == "squash":
            return View(0.0, 0.0, 1.0, 1.0, False)
        if self.kind == "centre":
            side = min(width, height)
            return View(*_placed(0.5, 0.5, (side, side), (width, height)), False)
        u_flip, u_order, _, _ = _uniform(key, index, "flip")
        crop = self._draw_crop(key, index, width, height)
        jitter = self._draw_jitter(key, index, int(24 * u_order)) if any(self.jitter) else None
        return View(*crop, u_flip < self.flip, jitter, self._draw_operations(key, index))

    def _draw_crop(self, key: str, index: int, width: int, height: int) -> tuple[float, float, float, float]:
        low, high = (math.log(bound) for bound in self.ratio)
        for attempt in range(10):
            u_area, u_ratio, u_left, u_top = _uniform(key, index, str(attempt))
            area = width * height * (self.scale[0] + u_area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + u_ratio * (high - low))
            crop = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if crop[0] <= width and crop[1] <= height:
                return _placed(u_left, u_top, crop, (width, height))
        largest = min(width, height * self.ratio[1]), min(height, width / self.ratio[0])
        return _placed(0.5, 0.5, largest, (width, height))

    def _draw_jitter(self, key: str, index: int, order: int) -> Jitter:
        numbers = _uniform(key, index, "jitter")
        low = [max(0.0, 1 - strength) for strength in self.jitter[:3]] + [-self.jitter[3]]
        high = [1 + strength for strength in self.jitter[:3]] + [self.jitter[3]]
        brightness, contrast, saturation, hue = (
            _half(a + u * (b - a)) for a, b, u in zip(low, high, numbers, strict=True)
        )
        return Jitter(brightness, contrast, saturation, hue, order)

    def _draw_operations(self, key: str, index: int) -> tuple[Operation, ...]:
        if self.rand_augment is None:
            return ()
        count, magnitude = self.rand_augment
        numbers = _uniform(key, index, "operations")
        drawn = []
        for u_name, u_sign in (numbers[:2], numbers[2:])[:count]:
            name = NAMES[int(len(NAMES) * u_name)]
            _, start, stop, signed = OPERATIONS[name]
            value = start + (stop - start) * magnitude / _BINS
            value = float(round(value)) if name == "Posterize" else _half(value)
            drawn.append(Operation(name, -value if signed and u_sign < 0.5 else value))
        return tuple(drawn)

    def pack(self, views: Sequence[View]) -> npt.NDArray[np.void]:
        """(n,) of `dtype`: what a cache keeps of these views."""
        return pack(views, photometric=self.photometric)

    def unpack(self, record: np.void) -> View:
        """The view that was packed into one element of `dtype`."""
        return self.unpack_all(np.array([record], self.dtype))[0]

    def unpack_all(self, records: npt.NDArray[np.void]) -> list[View]:
        """The views that were packed into (n,) of `dtype`."""
        return unpack(records)

    def render(
        self, image: EncodedImage, view: View, size: int, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """The pixels of a view: (size, size, 3) uint8, RGB; written to `out`, of that shape and contiguous, if given.

        Raises `OSError` if the image is damaged.
        """
        # OpenCV is slow to load, and most commands render nothing.
        from teacher_cache.views import rendering  # noqa: PLC0415

        if self.kind == "centre":
            return rendering.into(out, rendering.centre(image, size, self.interpolation))
        if self.kind == "squash":
            return rendering.into(out, rendering.squash(image, size, self.interpolation))
        return rendering.crop(image, view, size, out)


def _uniform(key: str, index: int, purpose: str) -> tuple[float, float, float, float]:
    """Four numbers in [0, 1) from SHA-256, so that any language can redraw them."""
    digest = hashlib.sha256(f"view\x1f{VIEWS_VERSION}\x1f{key}\x1f{index}\x1f{purpose}".encode()).digest()
    # 53 bits each, as many as a float holds: more could round up to 1.
    first, second, third, fourth = ((number >> 11) / 2.0**53 for number in struct.unpack("<4Q", digest))
    return first, second, third, fourth


def _placed(x: float, y: float, crop: tuple[float, float], image: tuple[int, int]) -> tuple[float, float, float, float]:
    """A crop of that size in pixels, `x` and `y` saying where in the room left over for it (0 to 1), as fractions."""
    left, top = x * (image[0] - crop[0]) / image[0], y * (image[1] - crop[1]) / image[1]
    a, b, c, d = (float(np.float32(value)) for value in (left, top, crop[0] / image[0], crop[1] / image[1]))
    return a, b, c, d


def _half(value: float) -> float:
    return float(np.float16(value))
