"""Boxes around faces, as DataComp's lists have them: `[[left, top, right, bottom], ...]` as shares of width and height.

They are of the picture as it is stored, before EXIF turns it: DataComp's detector saw what img2dataset writes.
"""

from __future__ import annotations

import json
import math
from typing import Any

COLUMN = "face_bboxes"
"""What DataComp calls the column."""
Boxes = tuple[tuple[float, float, float, float], ...]
_MOST = 10_000
_BEYOND = 1.0
"""How far a box may reach over the edge, as a share of the side; further out are pixels, not shares."""


def read_boxes(value: Any) -> Boxes:
    """A column's value: a list of boxes, the text of its JSON, or null or an empty text for none.

    Raises `ValueError` for anything else: a face must not be left as it is for how its box is written.
    """
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MOST:
        raise ValueError(f"no list of at most {_MOST} boxes")
    return tuple(_box(box) for box in value)


def _box(value: Any) -> tuple[float, float, float, float]:
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(part) for part in value):
        raise ValueError("a box is not four numbers")
    left, top, right, bottom = map(float, value)
    if not (-_BEYOND <= left <= right <= 1 + _BEYOND and -_BEYOND <= top <= bottom <= 1 + _BEYOND):
        raise ValueError("a box is not [left, top, right, bottom] in shares of width and height")
    return left, top, right, bottom


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
