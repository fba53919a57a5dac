"""Requests that wait until their site's robots.txt is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ingest.fetch.opt_out import Robots, RobotsCache
from ingest.fetch.transfer import Transfer, TransferResult

J = TypeVar("J")


class RobotsGates(Generic[J]):
    """What the robots.txt of each origin says to `agent`, and who waits for it."""

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._known = RobotsCache()
        self._waiting: dict[str, list[J]] = {}

    def __len__(self) -> int:
        """How many robots.txt are waited for."""
        return len(self._waiting)

    def allows(self, origin: str, url: str) -> bool | None:
        """Whether `url` may be fetched; None if that is not known yet."""
        robots = self._known.get(origin)
        return None if robots is None else robots.allows(url)

    def wait(self, origin: str, job: J) -> bool:
        """Let a job wait until `open`. Whether it is the first to do so: then robots.txt must be fetched."""
        is_first = origin not in self._waiting
        self._waiting.setdefault(origin, []).append(job)
        return is_first

    def open(self, origin: str, result: TransferResult, transfer: Transfer | None) -> tuple[list[J], str | None]:
        """Who waited for the robots.txt that this came of, and the cause why they cannot be fetched, if there is one.

        As RFC 9309 has it: no robots.txt allows everything, a server in trouble nothing; a long one is cut. That one
        could not be read is nothing to remember: who comes later asks again.
        """
        text, cause = b"", result.cause
        if transfer and cause in {None, "too_large"}:
            body = transfer.take()
            if body is not None:
                with body:
                    body.seek(0)
                    text = body.read()
            cause = None
        if cause is not None and cause.startswith("http_") and not cause.startswith("http_5"):
            cause = None
        if cause is None:
            self._known.put(origin, Robots(text, self._agent))
        return self._waiting.pop(origin), cause

    def drop(self, matches: Callable[[J], bool]) -> int:
        """Let those that match wait no more; how many they were."""
        before = sum(map(len, self._waiting.values()))
        for jobs in self._waiting.values():
            jobs[:] = [job for job in jobs if not matches(job)]
        return before - sum(map(len, self._waiting.values()))
