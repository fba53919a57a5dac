"""What every opened student is, whichever library computes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """`images`: (n, 3, h, w) float32, preprocessed as `preprocess_cfg` says → (n, D) float32 of unit norm.

    `texts`: n texts → (n, D) float32 of unit norm; None of a model without a text tower. Logits are `scale` · image ·
    text + `bias`. `preprocess_cfg` as in an `open_clip_config.json`.
    """

    images: Callable[[Rows], Rows]
    texts: Callable[[list[str]], Rows] | None
    scale: float
    bias: float
    preprocess_cfg: dict[str, Any]
