"""Images that Pillow decodes: PNG, WebP, GIF, AVIF and all that is rarer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from PIL import Image

from pictures.containers import PNG, check_jpeg_2000, check_png, check_webp, without_notes
from pictures.exif import orientation, plain_exif
from pictures.pillow import decoding, formats, open_with_pillow

# Each image in one piece of memory, so that its pixels can be used where they are.
Image.core.set_use_block_allocator(1)  # type: ignore[attr-defined]

_KINDS = formats()[1:]
"""All but JPEG, which `jpeg.py` reads. Asked for now: a process with little memory and time loads no more plugins."""
_CODEC_BYTES = {"WEBP": 14, "AVIF": 12, "JPEG2000": 20, "TIFF": 8}
_MODE_BYTES = {"1": 2, "L": 1, "I;16": 8, "RGB": 4, "P": 5, "RGBA": 7}
"""What decoders and our own steps hold for each pixel, measured; other modes are converted first."""
_BLEND_ROWS = 64


class Other:
    """An image whose header Pillow has read; of an animation the first picture."""

    def __init__(self, body: bytes) -> None:
        exif, self._animated, self._copied = b"", False, 0
        if body.startswith(PNG):
            check_png(body)
            slim, exif, self._animated = without_notes(body)
            self._copied = 0 if slim is body else len(slim)
            body = slim
        elif body.startswith(b"RIFF"):
            check_webp(body)
        elif body.startswith((b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")):
            check_jpeg_2000(body)
        self._image = open_with_pillow(body, _KINDS)
        self.size = self._image.size
        self.format = str(self._image.format)
        self._tiff = body if self.format == "TIFF" else b""
        self._found = plain_exif(exif or self._image.info.get("exif") or b"")

    @property
    def exif(self) -> bytes:
        """The EXIF block, for exifread, which looks for none but in JPEG, WebP and TIFF."""
        return self._tiff or (self._found if self.format == "WEBP" else b"")

    def is_plain(self) -> bool:
        """Whether every reader of the file sees what `decode` returns: one picture in 8-bit grey or RGB."""
        image = self._image
        wide = any(";16" in str(tile) for tile in image.tile)
        animated = self._animated or getattr(image, "is_animated", False)
        return image.mode in {"L", "RGB"} and not wide and not animated and "transparency" not in image.info

    def memory(self, scale: int) -> int:  # noqa: ARG002 - none but JPEG can be reduced
        """The bytes, at most, that `decode` will hold at once."""
        image = self._image
        each = _CODEC_BYTES.get(self.format, 0) + _MODE_BYTES.get(image.mode, 12)
        return image.width * image.height * (each + 7 * ("transparency" in image.info)) + self._copied

    def turn(self) -> int:
        """1 to 8: how the picture must be turned. Pillow turns TIFF by itself."""
        return 1 if self.format == "TIFF" else orientation(self._found, self._image.info.get("xmp") or b"")

    def decode(self, scale: int, *, fine: bool) -> np.ndarray:  # noqa: ARG002
        """The first picture, not turned, on white: grey (height, width), BGR (..., 3) or RGBX (..., 4), uint8.

        The array may not be writable.
        """
        with decoding():
            self._image.load()
            return pixels_of(self._image)


def pixels_of(image: Image.Image) -> np.ndarray:
    """A loaded image on white: grey (height, width), BGR (..., 3) or RGBX (..., 4), uint8."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        grey = (wide >> 8).astype(np.uint8)
        return grey if key is None else np.where(wide == key, np.uint8(255), grey)
    if isinstance(key, tuple) and max(key) > 255:
        # A colour of 16 bits, where Pillow keeps 8 of each pixel's.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None or image.mode in {"RGBA", "LA", "PA"}:
        return _on_white(rgbx(image if image.mode == "RGBA" else image.convert("RGBA")))
    if image.mode in {"1", "L"}:
        return _in_place(image.convert("L"))
    return rgbx(image if image.mode == "RGB" else image.convert("RGB"))


def rgbx(image: Image.Image) -> np.ndarray:
    """An RGB or RGBA image's own memory: (height, width, 4) uint8, read-only."""
    return _in_place(image)


def _in_place(image: Image.Image) -> np.ndarray:
    pixels = pa.array(image)
    if image.mode != "L":
        pixels = pixels.flatten()
    shape = (image.height, image.width) if image.mode == "L" else (image.height, image.width, 4)
    view: np.ndarray = pixels.to_numpy(zero_copy_only=True).reshape(shape)
    return view


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """(height, width, 4) uint8 → BGR, rounded to the nearest."""
    blended = np.empty((*rgba.shape[:2], 3), np.uint8)
    for top in range(0, len(rgba), _BLEND_ROWS):
        rows = rgba[top : top + _BLEND_ROWS]
        alpha = rows[:, :, 3:].astype(np.uint16)
        # x/255 rounded, without leaving 16 bits.
        mixed = rows[:, :, 2::-1] * alpha + np.uint16(128)
        mixed += mixed >> 8
        blended[top : top + _BLEND_ROWS] = (mixed >> 8) + (255 - alpha)
    return blended
