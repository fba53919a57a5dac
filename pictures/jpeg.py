"""One JPEG: libjpeg-turbo's pixels, at a reduced scale where that is wanted."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pictures.exif import orientation, plain_exif
from pictures.jpeg_header import USUAL_FRAMES, read_header
from pictures.others import pixels_of, rgbx
from pictures.pillow import decoding, open_with_pillow
from pictures.refusal import RefusedError
from pictures.scratch import scratch
from pictures.turbo import decode


class Jpeg:
    """A JPEG whose header was read. Only its first picture counts (MPO has more)."""

    format = "JPEG"

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._header = read_header(body)
        self.size = (self._header.width, self._header.height)
        self.is_usual = self._header.frame in USUAL_FRAMES
        self.exif = plain_exif(self._header.exif)

    def is_plain(self) -> bool:
        """Whether every reader of the file sees what `decode` returns: one picture in 8-bit grey or RGB."""
        return len(self._header.sampling) != 4 and not self._header.several

    def memory(self, scale: int) -> int:
        """The bytes, at most, that `decode` will hold at once."""
        header = self._header
        # Pillow's own step, should it be needed, holds four bytes a pixel, CMYK twice that.
        decoded = (12 if len(header.sampling) == 4 else 4) * header.pixels // scale**2
        # With several scans libjpeg keeps every coefficient, two bytes each.
        return decoded + (2 * header.coefficients if header.scans > 1 else 0)

    def turn(self) -> int:
        """1 to 8: how the picture must be turned."""
        return orientation(self.exif, self._header.xmp)

    def decode(self, scale: int, *, fine: bool) -> np.ndarray:
        """The picture at 1/`scale`, not turned: grey (height, width), BGR (..., 3) or RGBX (..., 4), uint8.

        `fine`: interpolate the colours, which often have a quarter of the picture's pixels, instead of repeating them;
        and read a progressive file's coefficients to their last bit, which at a reduced scale does not show.
        The array may not be writable, and holds until the next call on the same thread.
        """
        if self._header.scans > 1:
            self._header.check_work(self._body)
        with decoding():
            pixels = self._decode(scale, fine=fine)
            if pixels is not None:
                return pixels
            image = open_with_pillow(self._header.head + self._body[self._header.start :], ("JPEG",))
            image.draft(None, (image.width // scale, image.height // scale))
            image.load()
            return pixels_of(image)

    def _decode(self, scale: int, *, fine: bool) -> np.ndarray | None:
        """None if libjpeg-turbo finds fault with it and Pillow, which forgives more, is to judge."""
        space = {1: "GRAY", 3: "BGR", 4: "CMYK"}[len(self._header.sampling)]
        width, height = -(-self.size[0] // scale), -(-self.size[1] // scale)
        into = scratch("decoded", 4 * width * height)
        body = self._body if fine or scale == 1 else self._header.without_last_bits(self._body)
        pixels = decode(body, space, self.size, scale, fastupsample=not fine, buffer=into)
        if isinstance(pixels, str):
            if not self._header.is_cheap:
                raise ValueError(pixels)
            return None
        if pixels.shape[:2] != (height, width):
            raise RefusedError("not_an_image", f"a JPEG of {self.size[0]}x{self.size[1]} pixels by one of its headers")
        # Part of a pixel may be left over; what is nearer to the picture's own proportions stays.
        pixels = pixels[: _nearest(self.size[1], scale), : _nearest(self.size[0], scale)]
        if space == "GRAY":
            return pixels[:, :, 0]
        if space == "BGR":
            return pixels
        inks = np.invert(pixels)
        return rgbx(Image.frombuffer("CMYK", (inks.shape[1], inks.shape[0]), inks).convert("RGB"))


def _nearest(side: int, scale: int) -> int:
    return max(1, (2 * side + scale) // (2 * scale))
