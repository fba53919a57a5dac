"""What the reader of a kind of file offers to `Source`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

LONGEST = 1 << 26
"""The most bytes that a line or a field of text may have."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file with the columns that were asked for.

    `malformed` is the text of the rows that are none (too many fields, no JSON), null for the others; None if there
    are none. All columns of such a row are null.
    """

    table: pa.Table
    malformed: pa.Array | None = None


class Reader(Protocol):
    def schema(self, path: str) -> pa.Schema:
        """The columns of a file; text files have only text."""

    def blocks(self, path: str, columns: Sequence[str]) -> Iterator[Block]:
        """The rows of a file in order, a few MB at a time."""

    def rest(self, columns: Sequence[str]) -> Iterator[Block]:
        """Rows of the input that stand in none of the files, once all have been read."""


class FileReader:
    """A reader whose rows all stand in its files."""

    def rest(self, columns: Sequence[str]) -> Iterator[Block]:  # noqa: ARG002 - the protocol's
        return iter(())


def text_schema(names: Sequence[str]) -> pa.Schema:
    """Columns of text."""
    return pa.schema([pa.field(name, pa.string()) for name in names])
