"""How large the published models are, as built here: a table, since building all of them takes many seconds.

`python -m clip_models.measure` writes it anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parent / "sizes.json"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters: of the image tower with its projection, of the text tower without its token embedding, and all.

    Multiply-accumulates of one image and of one text as long as the context. Of a model without a text tower, `text`
    and `text_macs` are None.
    """

    image: int
    text: int | None
    total: int
    image_macs: int
    text_macs: int | None

    @property
    def macs(self) -> int:
        return self.image_macs + (self.text_macs or 0)


@functools.cache
def known_sizes() -> Mapping[str, Size]:
    """The sizes of the published models that can be had by name."""
    return {name: Size(**size) for name, size in json.loads(TABLE.read_text(encoding="utf-8")).items()}
