"""Ray for the length of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shards.ray_session import ray_session


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray with two cores, started once for a module."""
    with ray_session(cpus=2):
        yield
