"""The ledger: one row for every input row, with what became of it.

The columns are img2dataset's (`status`, `error_message`, sizes, hash, `exif`) with the cause as one word of a fixed
vocabulary beside them, so that failures can be counted without reading prose, and with where and when each row was
fetched. Those last columns (`MEASURED`) differ from run to run; everything else does not, if the web answers alike.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.faces import Boxes
from shards import Folder, UserError

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


HASHES = ("md5", "sha256", "sha512")
"""What the originals can be hashed with; the ledger's column has the hash's name."""

_RESULT = [
    ("status", pa.string()),
    ("error_class", pa.string()),
    ("error_message", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("original_width", pa.int32()),
    ("original_height", pa.int32()),
    ("exif", pa.string()),
    ("host", pa.string()),
    ("bytes", pa.int64()),
]
_MEASURED = [
    ("started", pa.timestamp("ms", tz="UTC")),
    ("seconds", pa.float32()),
    ("attempts", pa.int16()),
]
MEASURED = tuple(name for name, _ in _MEASURED)
"""The columns that no second run repeats: when the fetch began, how long it took with all attempts, how many."""


def result_fields(hash_name: str) -> list[pa.Field]:
    """The columns that the ledger adds to the plan's, in order."""
    names = [*_RESULT[:-2], (hash_name, pa.string()), *_RESULT[-2:], *_MEASURED]
    return [pa.field(name, kind) for name, kind in names]


PLAN_COLUMNS = ("key", "url", "caption", "captions", "duplicate_of", "filtered_by", "digest", "fault")
"""The ledger's first columns: the plan's. After them come the columns kept from the input, then the result's."""

RESERVED = frozenset([*PLAN_COLUMNS, *HASHES, *(name for name, _ in _RESULT + _MEASURED)])
"""Names that no kept column may have."""


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


def read_ledger(folder: Folder, shard: int) -> pa.Table:
    """All rows of one shard's ledger, its checksums checked. Raises `UserError` if it is missing or damaged."""
    name = f"{shard:05d}.parquet"
    with reading(folder, name):
        return pq.read_table(io.BytesIO(folder.read(name)), page_checksum_verification=True)


@contextlib.contextmanager
def reading(folder: Folder, name: str) -> Iterator[None]:
    """Raise `UserError` if the file `name` turns out to be missing or damaged."""
    do = "`clipstill shards verify` shows what else is damaged"
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{name} is missing", where=str(folder), do=do) from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name} cannot be read ({error})", where=str(folder), do=do) from None
