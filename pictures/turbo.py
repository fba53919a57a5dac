"""libjpeg-turbo, strictly: a JPEG whose data ends early has no pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from pictures.refusal import RefusedError

Pixels = npt.NDArray[np.uint8]


def decode(body: bytes, space: str, size: tuple[int, int], scale: int, **options: Any) -> Pixels | str:
    """(height, width, channels of `space`) uint8, the picture of `size` (width, height) at 1/`scale`, rounded up.

    Where libjpeg-turbo finds fault with it, what it says: Pillow, which forgives more, is to judge. Raises
    `RefusedError` if the data ends early: there libjpeg makes pixels up, which Pillow would let pass.
    """
    least = {"min_width": -(-size[0] // scale), "min_height": -(-size[1] // scale)} if scale > 1 else {}
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(body, space, **least, **options)
    except ValueError as error:
        if "premature end of data segment" in str(error):
            raise RefusedError("truncated", error) from None
        return str(error)
    return pixels
