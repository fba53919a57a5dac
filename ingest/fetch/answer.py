"""What whoever asked for a URL gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO


@dataclass(frozen=True)
class Answer:
    """A body, or why there is none: a cause of the ledger's with a message that is the same in every run.

    `host` is the URL's as given, `size` the body's in bytes after decoding, `started` in seconds since 1970,
    `seconds` what the clock showed at the end, `attempts` how many tries there were (redirects are part of a try).
    """

    error_class: str | None
    error_message: str | None
    host: str | None
    size: int | None
    started: float
    seconds: float
    attempts: int
    _body: IO[bytes] | None = field(default=None, repr=False, compare=False)

    def read(self) -> bytes:
        """The body, once; beyond 256 KiB it lay in a file until now. Only where there is no error."""
        assert self.error_class is None
        if self._body is None:
            return b""
        with self._body as body:
            body.seek(0)
            return body.read()

    def discard(self) -> None:
        """Let go of the body unread."""
        if self._body is not None:
            self._body.close()
