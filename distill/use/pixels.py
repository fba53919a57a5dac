"""A picture → what an image tower is shown, by Pillow and numpy alone: open_clip's preprocessing for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from shards.errors import UserError
from teacher_cache.views.encoded import EncodedImage, as_rgb

Picture = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A path, the bytes of an image file, an image of Pillow's, or (h, w, 3), (h, w, 4) or (h, w) uint8."""

_FORMS = "Give a path, the bytes of an image file, an image of Pillow's, or an array (h, w, 3) of uint8"
_FILTERS = {"bilinear": Image.Resampling.BILINEAR}


def is_one(pictures: Any) -> bool:
    """Whether this is one picture, not several."""
    several = isinstance(pictures, np.ndarray) and pictures.ndim == 4
    return isinstance(pictures, str | Path | bytes | bytearray | memoryview | Image.Image | np.ndarray) and not several


def upright(picture: Picture) -> Image.Image:
    """The picture as it is to be looked at: decoded, turned as its EXIF says.

    Raises `UserError` if there is none, or one that cannot be decoded.
    """
    if isinstance(picture, str | Path):
        return _decoded(_read(Path(picture)), str(picture))
    if isinstance(picture, bytes | bytearray | memoryview):
        return _decoded(bytes(picture), f"{len(picture):,} bytes")
    if isinstance(picture, Image.Image):
        return _turned(picture)
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    raise UserError(f"this is a {type(picture).__name__}, not a picture", do=_FORMS)


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except FileNotFoundError:
        do = "Fetch it first: nothing is downloaded here" if "://" in str(path) or ":/" in str(path) else _FORMS
        raise UserError("there is no such picture", where=str(path), do=do) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a picture", where=str(path), do="Give the pictures in it") from None
    except (OSError, ValueError) as error:  # a null byte in a path is a ValueError
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"the picture cannot be read ({reason})", where=str(path), do="Check the path") from error


def _decoded(data: bytes, where: str) -> Image.Image:
    try:
        image = EncodedImage(data)
        if image.width < 1 or image.height < 1:
            raise OSError("it has no pixels")
        return image.picture()
    except OSError as error:
        do = "Give a whole JPEG, PNG or WebP, or another kind that Pillow reads"
        raise UserError(f"the picture cannot be decoded ({error})", where=where, do=do) from error


def _turned(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's for a damaged file that was only opened so far
        raise UserError(f"the picture cannot be decoded ({error})", do="Give one that is whole") from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - garbage where EXIF should be says nothing of the pixels
        return image


def _of_array(array: npt.NDArray[Any]) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise UserError(f"an array of shape {array.shape} and {array.dtype} is not a picture", do=_FORMS)
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def preprocessed(image: Image.Image, settings: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """(3, h, w) float32 of an upright picture, bit by bit what open_clip makes of it.

    `settings`: size, mean, std, interpolation, resize_mode, fill_color, as in an `open_clip_config.json`.
    """
    size, mode = settings["size"], settings["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    resample = _FILTERS.get(settings["interpolation"], Image.Resampling.BICUBIC)
    if mode == "squash":
        image = image.resize((width, height), resample)
    elif mode == "longest":
        image = _resized(image, max(image.height / height, image.width / width), resample)
        image = _middle(image, height, width, settings.get("fill_color", 0))
    elif height == width:
        # torchvision's rounding, which is down; by ratios it is to the nearest.
        shorter = min(image.size)
        image = image.resize((int(width * image.width / shorter), int(height * image.height / shorter)), resample)
        image = _middle(image, height, width, 0)
    else:
        # open_clip's own resizing, which is bicubic whatever was chosen.
        image = _resized(image, min(image.height / height, image.width / width), Image.Resampling.BICUBIC)
        image = _middle(image, height, width, 0)
    pixels = np.asarray(as_rgb(image), np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.array(settings[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return np.ascontiguousarray((pixels - mean) / std)


def _resized(image: Image.Image, ratio: float, resample: Image.Resampling) -> Image.Image:
    return image.resize((max(1, round(image.width / ratio)), max(1, round(image.height / ratio))), resample)


def _middle(image: Image.Image, height: int, width: int, fill: int) -> Image.Image:
    missing = max(0, width - image.width), max(0, height - image.height)
    if any(missing):
        before = tuple(side // 2 for side in missing)
        after = tuple((side + 1) // 2 for side in missing)
        bands = len(image.getbands())
        image = ImageOps.expand(image, before + after, fill if bands == 1 else (fill,) * bands)
    left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))
