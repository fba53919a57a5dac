"""Write one shard: a webdataset tar with a fixed byte layout, and the index that makes every sample one seek away.

The tar holds `KEY.<ext>`, `KEY.txt`, `KEY.json` for each sample, in the order they were added; times, owners and
modes are constant, so equal samples give equal bytes. The index is an Arrow IPC file with one row a sample.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from shards.keys import is_key

INDEX_SCHEMA = pa.schema(
    [("key", pa.string())]
    + [(f"{part}_{field}", pa.int64()) for part in ("image", "text", "json") for field in ("offset", "size")]
)
"""Columns of `NNNNN.index.arrow`: the key, then offset and size in bytes of each member's data within the tar."""


_BUFFER = 1 << 20
"""Bytes of a tar that are written at once: some dozens of usual samples."""


class ShardWriter:
    """Writes a tar at `path`; use as a context manager, then `write_index`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=_BUFFER)
        self._end = 0
        self._rows: list[tuple[str | int, ...]] = []
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            # Two empty blocks, and the rest of a record: as tar itself ends a file.
            self._write(bytes(2 * tarfile.BLOCKSIZE), tarfile.RECORDSIZE)
        self._file.close()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: str, image: bytes, extension: str, caption: str, meta: Mapping[str, Any]) -> None:
        """Append one sample. `extension` is the image's, without a dot; `meta` must be JSON-serialisable."""
        assert is_key(key), key
        assert key not in self._keys, key
        self._keys.add(key)
        text = json.dumps(dict(meta), sort_keys=True, ensure_ascii=False).encode()
        places: list[int] = []
        for suffix, data in ((extension, image), ("txt", caption.encode()), ("json", text)):
            self._write(_header(f"{key}.{suffix}", len(data)))
            places += [self._end, len(data)]
            self._write(data)
        self._rows.append((key, *places))

    def _write(self, data: bytes, block: int = tarfile.BLOCKSIZE) -> None:
        padding = -(self._end + len(data)) % block
        self._file.write(data)
        self._file.write(bytes(padding))
        self._end += len(data) + padding

    def write_index(self, path: Path) -> None:
        """Write the index of everything added so far to a local file."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(INDEX_SCHEMA)
        table = pa.table([pa.array(c, t) for c, t in zip(columns, INDEX_SCHEMA.types, strict=True)], INDEX_SCHEMA)
        with pa.ipc.new_file(str(path), INDEX_SCHEMA) as sink:
            sink.write_table(table)


def _template() -> tarfile.TarInfo:
    entry = tarfile.TarInfo()
    entry.mode = 0o644
    return entry


_BLANK = _template().tobuf(tarfile.USTAR_FORMAT)
_SIZE, _SUM = slice(124, 135), slice(148, 155)
_BLANK_SUM = int(_BLANK[_SUM].rstrip(b"\0"), 8) - sum(_BLANK[_SIZE])


def _header(name: str, size: int) -> bytes:
    """A USTAR header of a plain file; what tarfile makes, which takes ten times as long to put one together."""
    label, digits = name.encode("ascii"), b"%011o" % size
    header = bytearray(_BLANK)
    header[: len(label)] = label
    header[_SIZE] = digits
    header[_SUM] = b"%06o\0" % (_BLANK_SUM + sum(label) + sum(digits))
    return bytes(header)
