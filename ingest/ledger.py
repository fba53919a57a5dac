"""The ledger: one row for every input row, with what became of it.

The columns are img2dataset's (`status`, `error_message`, sizes, hash, `exif`) with the cause as one of `fetched.CAUSES`
beside them, so that failures can be counted without reading prose, and with where and when each row was fetched. Those
last columns (`MEASURED`) differ from run to run; everything else does not, if the web answers alike.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from shards import Folder, UserError

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
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{name} cannot be read ({error})", where=str(folder), do=do) from None
