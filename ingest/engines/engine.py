"""What an engine does: URLs in, stored images or causes out. `clipstill_engine.py` is ours."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

from ingest.fetched import Fetched, Request


class Engine(Protocol):
    """Turns URLs into stored images or causes."""

    def fetch(self, requests: Sequence[Request], *, careful: bool = False) -> Generator[tuple[int, Fetched]]:
        """What came of each request, with its place among them, in order of completion.

        `careful`: something among them may have killed a worker, and must not do so again.
        """
        ...

    def forget_failures(self) -> None:
        """Try whatever did not answer as if it were new."""
        ...

    def close(self) -> None:
        """Close connections and end threads; a `fetch` that goes on in another thread ends by an exception."""
        ...
