"""Views: seeded crops that teacher and student replay alike.

A view is a pure function of (key, view index, policy): no RNG state, no order dependence. Its crop is relative to the
image, so a re-encoded or resized copy of the image still matches, and is stored in the cache for replay and audit.
`render` is the one function that turns an image and a view into pixels; at equal resolution the teacher's and the
student's pixels are identical.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from shards.errors import UserError

VIEWS_VERSION = 1
"""Goes up whenever `draw_view` or `render` would give other pixels; part of every cache's fingerprint."""


class View(NamedTuple):
    """A crop as fractions of the upright image's width and height (each exactly a float32), and a mirror flag."""

    left: float
    top: float
    width: float
    height: float
    flip: bool


@dataclass(frozen=True, kw_only=True)
class ViewPolicy:
    """How views are drawn.

    `crop`: RandomResizedCrop as in torchvision, its area a uniform fraction in `scale`, its aspect ratio log-uniform in
    `ratio`; mirrored with probability `flip`. `centre`: the central square, the same for every index. The defaults are
    TinyCLIP's (scale 0.9 to 1, no mirroring).
    """

    kind: Literal["crop", "centre"] = "crop"
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1] and 0 <= self.flip <= 1):
            raise UserError(
                f"no views can be drawn at scale {self.scale}, ratio {self.ratio}, flip {self.flip}",
                do="scale is a range within 0 to 1, ratio a range above 0, flip a probability; each range ascends",
            )

    def identity(self) -> dict[str, Any]:
        """JSON-able; equal identities draw equal views."""
        fields = asdict(self)
        return {"version": VIEWS_VERSION, **fields, "scale": list(self.scale), "ratio": list(self.ratio)}

    @staticmethod
    def from_identity(identity: dict[str, Any]) -> ViewPolicy:
        fields = {name: value for name, value in identity.items() if name != "version"}
        return ViewPolicy(**{**fields, "scale": tuple(fields["scale"]), "ratio": tuple(fields["ratio"])})


def _uniform(key: str, index: int, attempt: int) -> tuple[float, float, float, float]:
    """Four numbers in [0, 1) from SHA-256, so that any language can redraw them."""
    digest = hashlib.sha256(f"view\x1f{VIEWS_VERSION}\x1f{key}\x1f{index}\x1f{attempt}".encode()).digest()
    first, second, third, fourth = (int.from_bytes(digest[at : at + 8], "little") / 2.0**64 for at in range(0, 32, 8))
    return first, second, third, fourth


def draw_view(policy: ViewPolicy, key: str, index: int, width: int, height: int) -> View:
    """The view `index` of the sample `key`, whose upright image measures `width` x `height` pixels.

    Ten attempts to fit a crop, then the largest central one with an allowed ratio, as torchvision does.
    """
    flip = _uniform(key, index, -1)[0] < policy.flip
    if policy.kind == "centre":
        side = min(width, height)
        return _placed(0.5, 0.5, (side, side), (width, height), flip=False)
    low, high = (math.log(bound) for bound in policy.ratio)
    for attempt in range(10):
        u_area, u_ratio, u_left, u_top = _uniform(key, index, attempt)
        area = width * height * (policy.scale[0] + u_area * (policy.scale[1] - policy.scale[0]))
        ratio = math.exp(low + u_ratio * (high - low))
        crop = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if crop[0] <= width and crop[1] <= height:
            return _placed(u_left, u_top, crop, (width, height), flip)
    largest = min(width, height * policy.ratio[1]), min(height, width / policy.ratio[0])
    return _placed(0.5, 0.5, largest, (width, height), flip)


def _placed(x: float, y: float, crop: tuple[float, float], image: tuple[int, int], flip: bool) -> View:
    """A crop of that size in pixels, `x` and `y` saying where in the room left over for it (0 to 1)."""
    left, top = x * (image[0] - crop[0]) / image[0], y * (image[1] - crop[1]) / image[1]
    # float32 here already: what is drawn must equal what is read back from a cache.
    exact = [float(np.float32(value)) for value in (left, top, crop[0] / image[0], crop[1] / image[1])]
    return View(exact[0], exact[1], exact[2], exact[3], flip)


def decode(data: bytes) -> Image.Image:
    """The upright RGB image of an encoded file; raises `OSError` if it is damaged, no image, or too large."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        # A palette with an alpha for each colour goes to RGB by way of RGBA, the same colours without a warning.
        return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except Exception as error:  # decoders raise anything
        raise OSError(str(error) or type(error).__name__) from error


def render(image: Image.Image, view: View, size: int) -> npt.NDArray[np.uint8]:
    """The pixels of a view: (size, size, 3) uint8, RGB. Antialiased bicubic straight from the crop's exact edges."""
    width, height = image.size
    box = (
        min(view.left * width, width - 1e-3),
        min(view.top * height, height - 1e-3),
        min((view.left + view.width) * width, width),
        min((view.top + view.height) * height, height),
    )
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return pixels[:, ::-1] if view.flip else pixels
