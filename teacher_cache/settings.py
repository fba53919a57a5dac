"""What the user chooses about reading a cache."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shards.settings import settings

Policy = Literal["error", "skip", "none"]


@settings
class Join:
    """What becomes of samples that a cache does not have, as `teacher_cache/join.py` says. `limit`: the share of the
    samples that may lack embeddings under `skip`.
    """

    policy: Policy = "error"
    limit: Annotated[float, Field(ge=0, le=1)] = 0.01
