"""Captions made elsewhere: a Parquet table with a `key` column, read by key in any order.

This costs each worker one pass over the table, and the column's plain size with 36 bytes a row on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from shards import UserError
from shards.fingerprint import sha256_file
from shards.side_table import SideTable, schema_of


class CaptionTable:
    """The values of `column` in the Parquet file at `path`, by its column `key`. Rows without a key are passed over."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column = path, column

    def check(self) -> None:
        """Raises `UserError` if the file or one of the columns is not there."""
        names = schema_of(self.path).names
        for name in ("key", self.column):
            if name not in names:
                raise UserError(f"it has no column {name!r}; it has {', '.join(names)}", where=self.path)

    @cached_property
    def sha256(self) -> str:
        """Of the file."""
        return sha256_file(Path(self.path))

    def values(self, keys: Sequence[str]) -> list[Any]:
        """What the table says of each key, None where it lacks it.

        Raises `UserError` if a key of the table has two rows, or the table cannot be unpacked.
        """
        return self._table.values(self.column, keys)

    @cached_property
    def _table(self) -> SideTable:
        return SideTable.read(self.path, [self.column])
