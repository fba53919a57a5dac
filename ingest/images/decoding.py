"""Bytes → pixels, strictly: what is truncated, too large or of an unwanted kind is refused with its cause.

JPEG goes through libjpeg-turbo, at a reduced scale where that is wanted; everything else, and JPEGs that it finds
fault with, through Pillow. The sizes are checked from the header, before there are any pixels.
"""

from __future__ import annotations

import io
import re
import warnings

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image, ImageFile

from ingest.images.scratch import scratch

# Oversized and oddly tagged images are judged here; what Pillow has to say about them would go to nobody.
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.init()
# Each image in one piece of memory, so that its pixels can be used where they are.
Image.core.set_use_block_allocator(1)  # type: ignore[attr-defined]

_WANTED = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM")
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
"""What Pillow may decode: not EPS, which it hands to Ghostscript; nor ICO, which it decodes before its size is known;
nor formats that the web does not use."""

_CUT_SHORT = re.compile(r"truncated|broken data stream", re.IGNORECASE)
_SCAN = b"\xff\xda"
_MOST_SCANS = 500
"""A JPEG with more is made to waste time: each scan goes over all pixels."""
_CODEC_BYTES = {"WEBP": 14, "AVIF": 12, "JPEG2000": 20, "TIFF": 8}
_MODE_BYTES = {"1": 2, "L": 1, "I;16": 8, "RGB": 4, "P": 5, "RGBA": 7}
"""What decoders and our own steps hold for each pixel, measured; other modes are converted first."""
_BLEND_ROWS = 64


class RefusedError(Exception):
    """`cause` is one of `ledger.CAUSES`; the message is one line, the same for the same bytes."""

    def __init__(self, cause: str, message: object) -> None:
        # Pillow names streams by their addresses, which differ from run to run.
        super().__init__(re.sub(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>", "", " ".join(str(message).split())))
        self.cause = cause


def open_image(body: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The image with its header read and nothing decoded; refuses what is none or has more than `max_pixels`."""
    if body[8:12] == b"WEBP" and len(body) < 8 + int.from_bytes(body[4:8], "little"):
        # Pillow would not know it for a WebP.
        raise RefusedError("truncated", f"{len(body)} bytes of a longer WebP")
    try:
        image = Image.open(io.BytesIO(body), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise RefusedError("bomb", error) from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes
        raise RefusedError("not_an_image", error) from None
    if image.width * image.height > max_pixels:
        raise RefusedError("bomb", f"{image.width}x{image.height} pixels, the limit is {max_pixels}")
    if is_jpeg(image) and not _has_sampling(image):
        raise RefusedError("not_an_image", "a JPEG whose colours have impossible sampling factors")
    return image


def is_jpeg(image: ImageFile.ImageFile) -> bool:
    # MPO is a JPEG with more pictures behind it.
    return image.format in {"JPEG", "MPO"}


def is_plain(image: ImageFile.ImageFile) -> bool:
    """Whether every reader of the file sees what `decode` returns: one picture in 8-bit grey or RGB, and no more."""
    wide = any(";16" in str(tile) for tile in image.tile)
    animated = getattr(image, "is_animated", False)
    return image.mode in {"L", "RGB"} and not wide and not animated and "transparency" not in image.info


def memory(image: ImageFile.ImageFile, body: bytes, scale: int) -> int:
    """The bytes, at most, that `decode` will hold at once for this image."""
    pixels = image.width * image.height
    if not is_jpeg(image):
        each = _CODEC_BYTES.get(str(image.format), 0) + _MODE_BYTES.get(image.mode, 12)
        return pixels * (each + 7 * ("transparency" in image.info))
    # Pillow's own step, should it be needed, holds four bytes a pixel, CMYK twice that.
    decoded = (12 if image.mode == "CMYK" else 4) * pixels // scale**2
    if _scans(image, body) == 1:
        return decoded
    # With several scans libjpeg keeps every coefficient, two bytes each.
    sampling = [(across, down) for _, across, down, _ in _layers(image)]
    finest = max(across for across, _ in sampling) * max(down for _, down in sampling)
    return decoded + 2 * pixels * sum(across * down for across, down in sampling) // finest


def decode(image: ImageFile.ImageFile, body: bytes, scale: int) -> np.ndarray:
    """The first picture, not turned, on white: grey (height, width), BGR (..., 3) or RGBX (..., 4), uint8.

    A JPEG comes at 1/`scale` of its sizes, rounded up. The array may not be writable, and holds until the next call on
    the same thread.
    """
    try:
        if is_jpeg(image):
            pixels = _decode_jpeg(image, body, scale)
            if pixels is not None:
                return pixels
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return _pixels(image)
    except (MemoryError, RefusedError):
        raise
    except Exception as error:  # noqa: BLE001
        cause = "truncated" if _CUT_SHORT.search(str(error)) else "not_an_image"
        raise RefusedError(cause, error) from None


def as_bgr(pixels: np.ndarray) -> np.ndarray:
    """What `decode` returned as OpenCV writes it: grey or BGR."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGR) if pixels.shape[2:] == (4,) else pixels


def _decode_jpeg(image: ImageFile.ImageFile, body: bytes, scale: int) -> np.ndarray | None:
    """None if libjpeg-turbo finds fault with it and Pillow, which forgives more, is to judge."""
    if _scans(image, body) > _MOST_SCANS:
        raise RefusedError("bomb", f"a JPEG with more than {_MOST_SCANS} scans")
    space = {"L": "GRAY", "RGB": "BGR"}.get(image.mode, "CMYK")
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(body)
        if (width, height) != image.size:
            raise RefusedError("not_an_image", f"a JPEG of {image.width}x{image.height} or {width}x{height} pixels")
        least = {"min_width": -(-image.width // scale), "min_height": -(-image.height // scale)}
        into = scratch("decoded", 4 * least["min_width"] * least["min_height"])
        pixels: np.ndarray = simplejpeg.decode_jpeg(body, space, buffer=into, **(least if scale > 1 else {}))
    except ValueError as error:
        # Here libjpeg made pixels up, which Pillow would let pass.
        if "premature end of data segment" in str(error):
            raise RefusedError("truncated", error) from None
        return None
    if space == "GRAY":
        return pixels[:, :, 0]
    if space == "BGR":
        return pixels
    inks = np.invert(pixels, out=pixels)
    return _view(Image.frombuffer("CMYK", (inks.shape[1], inks.shape[0]), inks).convert("RGB"))


def _layers(image: ImageFile.ImageFile) -> list[tuple[int, int, int, int]]:
    """Of each colour in a JPEG: its number, its samples across and down, its quantisation table."""
    return image.layer  # type: ignore[attr-defined, no-any-return]


def _has_sampling(image: ImageFile.ImageFile) -> bool:
    factors = [factor for _, across, down, _ in _layers(image) for factor in (across, down)]
    return len(factors) in {2, 6, 8} and min(factors) >= 1 and max(factors) <= 4


def _scans(image: ImageFile.ImageFile, body: bytes) -> int:
    """How many there may be in a JPEG. Looks through the whole body only where there can be more than one."""
    layers = len(_layers(image))
    header = _SCAN + bytes((0, 6 + 2 * layers, layers))
    # Pillow has read up to the end of the first scan's header.
    end = image.fp.tell() if image.fp is not None else 0
    if "progressive" not in image.info and body.startswith(header, end - len(header) - 2 * layers - 3):
        return 1
    return body.count(_SCAN)


def _pixels(image: ImageFile.ImageFile) -> np.ndarray:
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        wide = np.asarray(image)
        grey = (wide >> 8).astype(np.uint8)
        return grey if key is None else np.where(wide == key, np.uint8(255), grey)
    if isinstance(key, tuple) and max(key) > 255:
        # A colour of 16 bits, where Pillow keeps 8 of each pixel's.
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if key is not None or image.mode in {"RGBA", "LA", "PA"}:
        return _on_white(_view(image if image.mode == "RGBA" else image.convert("RGBA")))
    if image.mode in {"1", "L"}:
        return _view(image.convert("L"))
    return _view(image if image.mode == "RGB" else image.convert("RGB"))


def _view(image: Image.Image) -> np.ndarray:
    """The image's own memory: (height, width) or (height, width, 4) uint8, read-only."""
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
