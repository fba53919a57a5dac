"""In which precision a forward runs: the only list of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from shards.settings import Known


@dataclass(frozen=True, kw_only=True)
class Casting:
    """`context`: `module:function` of a torch device, which gives the context that a forward runs in; weights stay
    float32. `drift`: by how much it may move a logit at scale 100 when a teacher runs in other batches. `scaled`: the
    loss is multiplied before the backward, so that small gradients are not lost. `native`: on a CPU it is slow without
    instructions of its own.
    """

    context: str
    drift: float = 0.0
    scaled: bool = False
    native: bool = True


PRECISIONS: dict[str, Casting] = {
    "fp32": Casting(context="clip_models.forward:plain", native=False),
    "bf16": Casting(context="clip_models.forward:bf16", drift=0.5),
    "fp16": Casting(context="clip_models.forward:fp16", drift=0.1, scaled=True),
}
"""float32, or autocast to bfloat16 or float16."""

Precision = Annotated[str, Known(PRECISIONS)]
"""A name of `PRECISIONS`."""
