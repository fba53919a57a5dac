from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _quiet(one_thread: None) -> None:
    """Every test here computes on one thread."""
