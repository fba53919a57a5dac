"""How large the published models are, as built here: a table, since building all of them takes many seconds.

`python -m clip_models.sizes` writes it anew.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clip_models.published import PUBLISHED

_TABLE = Path(__file__).parent / "sizes.json"


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
    return {name: Size(**size) for name, size in json.loads(_TABLE.read_text(encoding="utf-8")).items()}


def measured_sizes() -> dict[str, Size]:
    """The same, of models that are built for it."""
    from clip_models.measure import made_by_name, size_of  # noqa: PLC0415 - brings torch

    names = [row.name for row in PUBLISHED if row.role != "pruned"]
    return {name: size_of(made_by_name(name, "meta")) for name in names}


if __name__ == "__main__":
    lines = (f"{json.dumps(name)}: {json.dumps(asdict(size))}" for name, size in measured_sizes().items())
    _TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
