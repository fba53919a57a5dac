"""Pillow, held to the kinds of files that the web shows, and every error of its decoders as a `RefusedError`."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import AvifImagePlugin, Image, ImageFile, UnidentifiedImageError

from pictures.kind import unidentified
from pictures.refusal import RefusedError

# Oversized and oddly tagged images are judged by us; what Pillow has to say about them would go to nobody.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Several images are decoded at once; each gets one core.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_WANTED = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "PPM")
"""What Pillow may decode: not EPS, which it hands to Ghostscript; nor ICO, which it decodes before its size is known;
nor formats that the web does not use."""
_CUT_SHORT = re.compile(r"truncated|broken data stream", re.IGNORECASE)


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the kinds of files that it may open here, JPEG first."""
    Image.init()
    return tuple(name for name in _WANTED if name in Image.OPEN)


def open_with_pillow(body: bytes, kinds: tuple[str, ...]) -> ImageFile.ImageFile:
    """The file with its header read, of one of `kinds`. Raises `RefusedError`, or `MemoryError`."""
    try:
        return Image.open(io.BytesIO(body), formats=kinds)
    except Image.DecompressionBombError as error:
        raise RefusedError("bomb", error) from None
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise RefusedError("not_an_image", unidentified(body)) from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on hostile bytes
        raise RefusedError("not_an_image", error) from None


@contextmanager
def decoding() -> Iterator[None]:
    """Raises `RefusedError` for whatever a decoder raises, but `MemoryError`."""
    try:
        yield
    except (MemoryError, RefusedError):
        raise
    except Exception as error:  # noqa: BLE001
        cause = "truncated" if _CUT_SHORT.search(str(error)) else "not_an_image"
        raise RefusedError(cause, error) from None
