"""What an engine does: URLs in, stored images or causes out. `clipstill_engine.py` is ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from ingest.ledger import Fetched, Request


class Engine(Protocol):
    """Turns URLs into stored images or causes."""

    def fetch(self, requests: Sequence[Request]) -> Iterator[tuple[int, Fetched]]:
        """What came of each request, with its place among them, in order of completion."""
        ...

    def close(self) -> None:
        """Close connections and end threads."""
        ...
