"""What the reader of a kind of file offers to `Source`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import pyarrow as pa

from ingest.sources.columns import Chosen

LONGEST = 1 << 26
"""The most bytes that a line or a field of text may have."""


class Fault(NamedTuple):
    """What is wrong with a row: its text as it stands in the file, and why it is no row, with its place there."""

    text: str
    why: str


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file with the columns `chosen.all`, in that order.

    `faults` has those of the rows that are none (too many fields, no JSON, stray bytes) by their places in `table`,
    where all columns of such a row are null.
    """

    table: pa.Table
    faults: dict[int, Fault]

    def columns_of_faults(self) -> tuple[pa.Array, pa.Array]:
        """The text of every faulty row and why it is none, null for the other rows."""
        texts: list[str | None] = [None] * self.table.num_rows
        whys = texts.copy()
        for place, fault in self.faults.items():
            texts[place], whys[place] = fault
        return pa.array(texts, pa.string()), pa.array(whys, pa.string())


class Reader(Protocol):
    def schema(self, path: str) -> pa.Schema:
        """The columns of a file; text files have only text."""

    def blocks(self, path: str, chosen: Chosen) -> Iterator[Block]:
        """The rows of a file in order, a few MB at a time."""

    def rest(self, chosen: Chosen) -> Iterator[Block]:
        """Rows of the input that stand in none of the files, once all have been read."""


class FileReader:
    """A reader whose rows all stand in its files."""

    def rest(self, chosen: Chosen) -> Iterator[Block]:  # noqa: ARG002 - the protocol's
        return iter(())


def text_schema(names: Sequence[str]) -> pa.Schema:
    """Columns of text."""
    return pa.schema([pa.field(name, pa.string()) for name in names])


def take_or_null(values: pa.Array, places: pa.Array) -> pa.Array:
    """The values at `places`, null where the place is null."""
    taken = values.take(places)
    assert len(taken) == len(places)
    return taken


def field_count(got: int, width: int) -> str:
    """Why a row of `got` fields is none."""
    return f"{got} field{'s' * (got != 1)} where {width} {'is' if width == 1 else 'are'} expected"
