"""Write one shard: a webdataset tar with a fixed byte layout, and the index that makes every sample one seek away.

The tar holds `KEY.<ext>`, `KEY.txt`, `KEY.json` for each sample, in the order they were added; times, owners and
modes are constant, so equal samples give equal bytes. The index is an Arrow IPC file with one row a sample.
"""

from __future__ import annotations

import io
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


class ShardWriter:
    """Writes a tar at `path`; use as a context manager, then `write_index`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._rows: list[tuple[str | int, ...]] = []
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._tar.close()
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
            entry = tarfile.TarInfo(f"{key}.{suffix}")
            entry.size, entry.mode = len(data), 0o644
            self._tar.addfile(entry, io.BytesIO(data))
            padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            places += [self._tar.offset - padded, len(data)]
        self._rows.append((key, *places))

    def write_index(self, path: Path) -> None:
        """Write the index of everything added so far to a local file."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(INDEX_SCHEMA)
        table = pa.table([pa.array(c, t) for c, t in zip(columns, INDEX_SCHEMA.types, strict=True)], INDEX_SCHEMA)
        with pa.ipc.new_file(str(path), INDEX_SCHEMA) as sink:
            sink.write_table(table)
