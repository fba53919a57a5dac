"""What engines are asked, and what they answer: an image, or a cause as one word of a fixed vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ingest.faces import Boxes

CAUSES = (
    "bad_url",  # not http(s), or empty
    "bad_row",  # the input's row is none: too many fields, an open quote, stray bytes, no JSON
    "no_caption",
    "duplicate",  # the URL stands in an earlier row too, which has the sample
    "bad_boxes",  # of faces to blur
    "filtered_where",  # by a condition on the input's columns
    "no_file",  # of rows that name files: none is there, or it cannot be read
    "blocked_address",  # private, loopback, link-local and the like
    "robots_txt",
    "opt_out",  # X-Robots-Tag: noai and the like
    "dns",
    "connect",
    "tls",
    "timeout",
    "incomplete",  # the connection ended before the answer did
    "protocol",  # an answer that is no HTTP, or has too many headers or redirects
    "too_large",  # more bytes than allowed
    "hash_mismatch",  # other bytes than the input promises
    "not_an_image",
    "truncated",
    "bomb",  # more pixels than allowed, by the header
    "killed_worker",  # decoding took more time or memory than any image may, or crashed the decoder
    "filtered_size",
    "filtered_area",
    "filtered_aspect",
    "other",
)
"""The words a failure's `error_class` may be, besides `http_NNN` for an HTTP status."""

IMAGE_CAUSES = frozenset(
    {
        "not_an_image",
        "truncated",
        "bomb",
        "killed_worker",
        "filtered_size",
        "filtered_area",
        "filtered_aspect",
        "hash_mismatch",
    }
)
"""The causes that lie in the bytes, not in getting them."""

_MAY_PASS = re.compile(r"no_file|dns|connect|tls|timeout|incomplete|http_(408|425|429|5\d\d)")


def may_pass(cause: str) -> bool:
    """Whether fetching again on another day may succeed."""
    return _MAY_PASS.fullmatch(cause) is not None


@dataclass(frozen=True)
class Request:
    """One URL to fetch. `digest`: the lower-case hex hash that the original must have, if the input promises one.

    `boxes`: the faces to blur.
    """

    url: str
    digest: str | None = None
    boxes: Boxes = ()


@dataclass(frozen=True)
class Fetched:
    """What came of one URL: an encoded image with its sizes in pixels and the original bytes' hash, or a cause.

    `bytes` is the original's size, `started` in seconds since 1970, `seconds` the time of all attempts together.
    """

    image: bytes | None = None
    extension: str = "jpg"
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    digest: str | None = None
    exif: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    host: str | None = None
    bytes: int | None = None
    started: float | None = None
    seconds: float | None = None
    attempts: int | None = None

    @property
    def status(self) -> str:
        """img2dataset's word (`success`, `failed_to_download`, `failed_to_resize`), or `duplicate` or `filtered`."""
        if self.error_class is None:
            return "success"
        if self.error_class == "duplicate":
            return "duplicate"
        if self.error_class == "filtered_where":
            return "filtered"
        return "failed_to_resize" if self.error_class in IMAGE_CAUSES else "failed_to_download"

    def result(self, hash_name: str) -> dict[str, Any]:
        """The row's values for `result_fields`."""
        started = None if self.started is None else int(self.started * 1000)
        return {**vars(self), "started": started, "status": self.status, hash_name: self.digest}
