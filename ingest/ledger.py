"""The ledger: one row for every input row, with what became of it.

The columns are img2dataset's (`status`, `error_message`, sizes, `sha256`) with the cause as one word of a fixed
vocabulary beside them, so that failures can be counted without reading prose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

CAUSES = (
    "bad_url",  # not http(s), empty, or a malformed input row
    "no_caption",
    "dns",
    "connect",
    "tls",
    "timeout",
    "opt_out",  # X-Robots-Tag: noai and the like
    "too_large",  # more bytes than allowed
    "bomb",  # more pixels than allowed, by the header
    "not_an_image",
    "truncated",
    "filtered",
    "other",
)
"""The words a failure's `error_class` may be, besides `http_NNN` for an HTTP status."""

RESULT_FIELDS = [
    pa.field("status", pa.string()),
    pa.field("error_class", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("original_width", pa.int32()),
    pa.field("original_height", pa.int32()),
    pa.field("sha256", pa.string()),
    pa.field("exif", pa.string()),
]
RESERVED = ("key", "url", "caption", *(field.name for field in RESULT_FIELDS))


@dataclass(frozen=True)
class Fetched:
    """What came of one URL: an encoded JPEG with its sizes in pixels and the original bytes' SHA-256, or a cause."""

    image: bytes | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    exif: str | None = None
    error_class: str | None = None
    error_message: str | None = None

    @property
    def status(self) -> str:
        """img2dataset's word: `success`, `failed_to_download` or `failed_to_resize`."""
        if self.image is not None:
            return "success"
        decoding = {"too_large", "bomb", "not_an_image", "truncated", "filtered"}
        return "failed_to_resize" if self.error_class in decoding else "failed_to_download"

    def result(self) -> dict[str, str | int | None]:
        """The row's values for `RESULT_FIELDS`."""
        values = {field.name: getattr(self, field.name) for field in RESULT_FIELDS}
        return values


_BY_MESSAGE = (
    (r"X-Robots-Tag", "opt_out"),
    (r"CERTIFICATE|SSL|TLS", "tls"),
    (r"timed out|timeout", "timeout"),
    (r"IncompleteRead|truncated|broken data stream", "truncated"),
    (r"Errno -[235]\b|Name or service not known|getaddrinfo|nodename nor servname", "dns"),
    (r"unknown url type|no host given|control characters|unsupported URL|Invalid URL|nonnumeric port|idna", "bad_url"),
    (r"Invalid IPv6|codec can't encode|Errno -8\b", "bad_url"),
    (r"Image decoding error", "not_an_image"),
    (r"image too small|area too large|aspect ratio", "filtered"),
    (r"Errno 1\d\d\b|[Cc]onnection|Remote end closed|reset by peer", "connect"),
)


def classify(message: str) -> str:
    """The cause that a message of urllib or img2dataset stands for: one of `CAUSES` or `http_NNN`."""
    status = re.match(r"HTTP Error (\d{3})", message)
    if status:
        return f"http_{status.group(1)}"
    for pattern, cause in _BY_MESSAGE:
        if re.search(pattern, message):
            return cause
    return "other"
