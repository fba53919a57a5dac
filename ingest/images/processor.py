"""An original's bytes → the image that is stored, or why there is none.

    bytes → hash → header (open_image) → filters → pixels (decode) → resize → blur faces → turn upright → crop or border
          → encode

Everything heavy runs outside Python's global lock, so that threads share the work; `Room` bounds what they hold.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from ingest.faces import Boxes
from ingest.fetched import Fetched
from ingest.images.blurring import blur
from ingest.images.exif import NONE, exif_json, swaps_sides, upright
from ingest.images.isolated import IsolatedProcessor
from ingest.images.resizing import decoding_scale, fitted, is_fitted, needs_fine_colours, resize, resized
from ingest.settings import ImageSettings
from pictures.exif import orientation
from pictures.opening import Picture, UnforeseeableError, open_image
from pictures.refusal import RefusedError

_QUALITY = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "png": cv2.IMWRITE_PNG_COMPRESSION, "webp": cv2.IMWRITE_WEBP_QUALITY}
_LONGEST = {"jpg": 65_500, "png": 1_000_000, "webp": 16_383}
"""The longest side that each format's encoder takes, in pixels."""
_OUTPUT_BYTES = 10
"""What resizing, turning and encoding hold for each pixel of the result."""
_MOST_BYTES = 320_000_000
"""What the images being decoded at one time may hold, here or in a process of their own: in all, under 700 MB."""
_UNFORESEEABLE_S = 2.0
"""CPU-seconds for an image whose header does not tell what it costs."""


class ImageProcessor:
    """Checks, resizes and encodes images by `settings`; `process` may run in several threads at once.

    Images whose header does not tell what they cost are left to processes of their own, unless this one is `alone`,
    which ends when an image takes too much.
    """

    def __init__(self, settings: ImageSettings, *, alone: bool = False) -> None:
        self._settings = settings
        self._room = _Room(_MOST_BYTES)
        self._isolated = None if alone else IsolatedProcessor(settings, cpu_s=_UNFORESEEABLE_S)

    def close(self) -> None:
        """End the processes, if there are any."""
        if self._isolated is not None:
            self._isolated.close()

    def process(self, body: bytes, digest: str | None = None, boxes: Boxes = ()) -> Fetched:
        """The stored image with its facts, or the cause why there is none; never raises for what the bytes are.

        `digest` is the hash that the body must have, in lower-case hex; `boxes` are the faces to blur.
        """
        try:
            return self._process(body, digest, boxes)
        except UnforeseeableError:
            assert self._isolated is not None
            # What that takes is as much as all that is decoded here may.
            with self._room.taken(_MOST_BYTES):
                return self._isolated.process(body, digest, boxes)
        except RefusedError as error:
            # Not the error itself: with its traceback it would hold this frame, and the body, until a collection.
            cause, message = error.cause, str(error)
        except MemoryError:
            raise  # that is no fact about the image
        except Exception as error:  # noqa: BLE001 - a hostile image may cost its row, but not the shard
            cause, message = "other", str(RefusedError("other", f"{type(error).__name__}: {error}"))
        return Fetched(bytes=len(body), error_class=cause, error_message=message)

    def _process(self, body: bytes, promised: str | None, boxes: Boxes) -> Fetched:
        settings = self._settings
        if len(body) > settings.max_bytes:
            raise RefusedError("too_large", f"{len(body)} bytes, the limit is {settings.max_bytes}")
        digest = hashlib.new(settings.hash, body).hexdigest()
        if promised is not None and digest != promised:
            raise RefusedError("hash_mismatch", f"{settings.hash} {digest}, promised was {promised}")
        image = open_image(body, settings.max_pixels, alone=self._isolated is None)
        width, height = image.size
        self._filter(width, height)
        target = resized(settings, width, height)
        self._check_storable(*target)
        keep = settings.skip_reencode and not boxes and target == image.size and self._is_storable(image)
        scale = decoding_scale(width, height, target) if image.format == "JPEG" and not settings.exact else 1
        needed = len(body) + image.memory(scale) + _OUTPUT_BYTES * target[0] * target[1]
        with self._room.taken(needed):
            fine = settings.exact or needs_fine_colours(width, height, target)
            pixels = resize(image.decode(scale, fine=fine), target, exact=settings.exact)
            if boxes:
                # Boxes are of the picture as it is stored, not yet upright; Pillow has turned TIFF already.
                if image.format == "TIFF" and orientation(image.exif) != 1:
                    raise RefusedError("bad_boxes", "boxes of a TIFF that is stored turned")
                pixels = blur(pixels, boxes)
            turn = image.turn()
            pixels = upright(pixels, turn)
            if is_fitted(settings, width, height):
                keep, pixels = False, fitted(settings, pixels)
            encoded = body if keep and turn == 1 else self._encode(pixels)
        return Fetched(
            image=encoded,
            extension=settings.format,
            width=pixels.shape[1],
            height=pixels.shape[0],
            original_width=height if swaps_sides(turn) else width,
            original_height=width if swaps_sides(turn) else height,
            digest=digest,
            exif=exif_json(image.exif) if settings.exif else NONE,
            bytes=len(body),
        )

    def _filter(self, width: int, height: int) -> None:
        """Refuse what the user does not want; none of it depends on which way up the picture is."""
        settings = self._settings
        sizes = f"{width}x{height} pixels"
        if min(width, height) < settings.min_size:
            raise RefusedError("filtered_size", f"{sizes}, the shorter side must have {settings.min_size}")
        if settings.max_area is not None and width * height > settings.max_area:
            raise RefusedError("filtered_area", f"{sizes}, the limit is {settings.max_area}")
        ratio = max(width, height) / min(width, height)
        if settings.max_aspect_ratio is not None and ratio > settings.max_aspect_ratio:
            raise RefusedError("filtered_aspect", f"{sizes}, the limit is {settings.max_aspect_ratio:g} to 1")

    def _check_storable(self, width: int, height: int) -> None:
        """Refuse a ribbon whose shorter side, made right, makes the longer one impossible."""
        settings = self._settings
        if max(width, height) > _LONGEST[settings.format]:
            longest = f"{settings.format} has at most {_LONGEST[settings.format]} on a side"
            raise RefusedError("filtered_aspect", f"{width}x{height} pixels after resizing, {longest}")
        if width * height > settings.max_pixels:
            raise RefusedError("bomb", f"{width}x{height} pixels after resizing, the limit is {settings.max_pixels}")

    def _is_storable(self, image: Picture) -> bool:
        """Whether the original can itself be what is stored."""
        format = "jpg" if image.format == "JPEG" else image.format.lower()
        return format == self._settings.format and image.is_plain()

    def _encode(self, pixels: np.ndarray) -> bytes:
        settings = self._settings
        done, encoded = cv2.imencode(f".{settings.format}", pixels, [_QUALITY[settings.format], settings.quality])
        assert done
        return encoded.tobytes()


class _Room:
    """So many bytes for all threads together."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._changed = threading.Condition()
        self._queue = threading.Lock()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Wait until `amount` bytes are free, and hold them; refuses what would never be."""
        if amount > self._size:
            limit = f"the limit is {self._size // 10**6}"
            raise RefusedError("bomb", f"{amount // 10**6} MB needed to decode it, {limit}")
        # In turn, so that who waits for much is not overtaken for ever by those who need little.
        with self._queue, self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify()
