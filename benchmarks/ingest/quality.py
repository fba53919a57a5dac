"""How close images come to the best there is: every pixel decoded, then Lanczos, on photos that were not made here."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from ingest.images import ImageProcessor
from ingest.settings import ImageSettings

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos.parquet"
_MODE: Final = "keep_ratio_largest"
"""What is inside the border: white margins are no measure of quality."""

Resize = Callable[[bytes], bytes]


def compare(photos: Path, count: int, size: int) -> dict[str, Any]:
    """PSNR in dB against Pillow's Lanczos over the first `count` photos (a column `jpeg`) larger than `size`.

    `lossless` stores PNG, which leaves the error of decoding and resizing alone; `jpeg_95` is what is stored by
    default, where the encoder's own loss counts. Each has median, mean, the worst twentieth and the lowest.
    """
    bodies = [body for body in pq.read_table(photos, columns=["jpeg"])["jpeg"].to_pylist() if _longer(body) > size]
    bodies = bodies[:count]
    kinds: dict[str, tuple[Literal["png", "jpg"], int]] = {"lossless": ("png", 1), "jpeg_95": ("jpg", 95)}
    return {
        "photos": len(bodies),
        **{
            kind: {
                "default": _summary(bodies, _ours(size, form, quality, exact=False)),
                "exact": _summary(bodies, _ours(size, form, quality, exact=True)),
                "img2dataset": _summary(bodies, _img2dataset(size, form, quality)),
            }
            for kind, (form, quality) in kinds.items()
        },
    }


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """In dB over all values of two uint8 arrays of one shape; 99 for equal ones."""
    error = float(np.mean((image.astype(np.float64) - reference) ** 2))
    return min(99.0, 10 * float(np.log10(255**2 / error))) if error else 99.0


def _summary(bodies: Sequence[bytes], resize: Resize) -> dict[str, float]:
    values = []
    for body in bodies:
        image = np.asarray(_open(resize(body)))
        reference = _open(body).resize((image.shape[1], image.shape[0]), Image.Resampling.LANCZOS)
        values.append(psnr(image, np.asarray(reference)))
    return {
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "worst_twentieth": float(np.percentile(values, 5)),
        "low": min(values),
    }


def _ours(size: int, form: Literal["png", "jpg"], quality: int, *, exact: bool) -> Resize:
    settings = ImageSettings(size=size, resize_mode=_MODE, format=form, quality=quality, exact=exact)
    processor = ImageProcessor(settings)

    def resize(body: bytes) -> bytes:
        fetched = processor.process(body)
        assert fetched.image is not None, fetched.error_message
        return fetched.image

    return resize


def _img2dataset(size: int, form: Literal["png", "jpg"], quality: int) -> Resize:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from img2dataset.resizer import Resizer  # noqa: PLC0415 - warns and asks a registry unless told not to

    resizer = Resizer(size, _MODE, resize_only_if_bigger=True, encode_quality=quality, encode_format=form)

    def resize(body: bytes) -> bytes:
        image, *_, error = resizer(io.BytesIO(body))
        assert error is None, error
        return bytes(image)

    return resize


def _open(body: bytes) -> Image.Image:
    return Image.open(io.BytesIO(body)).convert("RGB")


def _longer(body: bytes) -> int:
    return max(Image.open(io.BytesIO(body)).size)
