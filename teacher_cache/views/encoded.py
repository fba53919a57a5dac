"""An encoded image → upright RGB pixels, as many as a view needs, strictly: what is truncated is an error.

`pictures` reads and decodes, as for ingest: JPEG with libjpeg-turbo, at a reduced scale where that is wanted;
everything else, and JPEGs that it finds fault with, with Pillow.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from pictures import RefusedError
from pictures.exif import TURNS
from pictures.jpeg_header import USUAL_FRAMES, read_header
from pictures.pillow import decoding, formats, open_with_pillow
from pictures.turbo import decode

_SWAPPED = {5, 6, 7, 8}
_HOLDERS = {"exif", "xmp"}
"""Where Pillow keeps a JPEG's segments that may tell its orientation."""
_MOST_PIXELS = 1 << 26
"""Below what Pillow warns of."""
_PNG_HOLDERS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


class EncodedImage:
    """The bytes of an image file. Nothing is decoded before a view asks; what is decoded is kept for other views.

    `width`, `height`: pixels of the upright picture, the EXIF orientation applied. `reducible`: a JPEG, which can be
    decoded at 1/2, 1/4 and 1/8. Raises `OSError` if it is no image, or one of so many pixels that it may be a bomb.
    Threads may share one: what they decode twice is the same.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._decoded: dict[int, npt.NDArray[np.uint8]] = {}
        self._picture: Image.Image | None = None
        plain = _plain_jpeg(data)
        if plain is not None:
            self.reducible, self._plain_jpeg, self._turn = True, True, 1
            self.width, self.height = plain
            return
        image = _open(data)
        # MPO is a JPEG with more pictures behind it.
        self.reducible = image.format in {"JPEG", "MPO"}
        self._plain_jpeg = self.reducible and image.mode in {"L", "RGB"}
        self._turn = _orientation(image, data)
        width, height = image.size
        self.width, self.height = (height, width) if self._turn in _SWAPPED else (width, height)

    def pixels(self, scale: int = 1) -> npt.NDArray[np.uint8]:
        """The upright picture: (height, width, 3) uint8, RGB, not to be written to. Alpha is dropped, not blended.

        At 1/`scale` of its sizes, rounded up; `scale` is 1, 2, 4 or 8, and 1 for what is not `reducible`. Raises
        `OSError` if the image is damaged.
        """
        if scale not in self._decoded:
            turbo = self._turbo(scale) if self._plain_jpeg else None
            if turbo is None:
                self._decoded[scale] = np.asarray(as_rgb(self._pillow(scale)))
            elif self._turn in TURNS:
                self._decoded[scale] = np.asarray(Image.fromarray(turbo).transpose(TURNS[self._turn]))
            else:
                self._decoded[scale] = turbo
        return self._decoded[scale]

    def picture(self) -> Image.Image:
        """The upright picture in its own mode, as Pillow decodes it; but JPEG in RGB, and greys of 16 bits in 8.

        Raises `OSError` if the image is damaged.
        """
        if self._picture is None:
            # Strictly where that can be: the pixels are Pillow's own, and greys as RGB resize to the same.
            self._picture = Image.fromarray(self.pixels()) if self._plain_jpeg else self._pillow(1)
        return self._picture

    def _turbo(self, scale: int) -> npt.NDArray[np.uint8] | None:
        """Not turned. None if libjpeg-turbo finds fault with it and Pillow is to judge."""
        size = (self.height, self.width) if self._turn in _SWAPPED else (self.width, self.height)
        pixels = decode(self._data, "RGB", size, scale)
        return None if isinstance(pixels, str) else pixels

    def _pillow(self, scale: int) -> Image.Image:
        image: Image.Image = _open(self._data)
        try:
            with decoding():
                if scale > 1:
                    image.draft(None, (image.width // scale, image.height // scale))
                image.load()
                if image.mode.startswith("I"):
                    image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
                return image.transpose(TURNS[self._turn]) if self._turn in TURNS else image
        except MemoryError as error:
            raise RefusedError("bomb", error) from error


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        return open_with_pillow(data, formats())
    except MemoryError as error:
        raise RefusedError("bomb", error) from error


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of 8 bits, grey or in three colours, with no word on its orientation.

    None of all else, which Pillow is to judge. It would open this one too, at ten times the cost.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        header = read_header(data)
    except RefusedError:
        return None
    usual = header.frame in USUAL_FRAMES and len(header.sampling) != 4 and header.pixels <= _MOST_PIXELS
    return (header.width, header.height) if usual and not (header.exif or header.xmp) else None


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB."""
    # A palette with an alpha for each colour goes there by way of RGBA, the same colours without a warning.
    return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """1 to 8, as EXIF counts. Decodes nothing, but for PNG that has EXIF, which may stand behind the pixels."""
    if image.format == "TIFF":
        return 1  # Pillow turns it when it decodes it
    if image.format == "PNG" and not any(holder in data for holder in _PNG_HOLDERS):
        return 1
    if image.format in {"JPEG", "MPO"} and not _HOLDERS & image.info.keys():
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - garbage where EXIF should be says nothing of the pixels
        return 1
