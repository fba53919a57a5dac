"""Decide about rows before any fetch: which are duplicates, which row gets their captions, where shards end.

The decisions follow from the rows so far and from the settings, never from the blocks in which the rows were read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.plan.seen import Hashes, Seen
from shards.keys import sample_key

MOST_CAPTIONS = 1000
"""Captions of other rows kept with a sample: a placeholder's URL may stand in millions of rows."""
_MOST_ROWS = 64
"""A shard has at most so many times the rows that are to be fetched of it: a filter may leave none for long."""
SHARD_BYTES = 1 << 29
"""And no more bytes of rows than this, but for one that has more by itself: a column of text holds at most 2 GiB."""


_LOWER = r"^https?://[^/?#\\A-Z]*[/?]"
_START = re.compile(r"(?:https?:)?//[^/?#\\]*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of the input: the table that a `Source` gives, and of the rows that may be fetched (they have a
    URL and are not filtered) their `places` in it, int64, with the `hashes` of URL and promised digest.

    `sizes` are the rows' bytes, (n,) int64: a row has the same wherever the blocks that were read begin and end.
    """

    table: pa.Table
    places: np.ndarray
    hashes: Hashes
    sizes: np.ndarray

    @staticmethod
    def of(table: pa.Table, *, files: bool = False) -> Rows:
        """`files`: what stands for URLs are paths, each its own name."""
        url, digest = table["url"], table["digest"]
        wanted = pc.and_(pc.fill_null(pc.not_equal(url, ""), False), pc.is_null(table["filtered_by"]))
        assert len(wanted) == table.num_rows
        places = np.flatnonzero(wanted.to_numpy())
        some = table.select(["url", "digest"]).take(pa.array(places))
        # Rows that promise different bytes are different files, wherever they lie.
        named = some["url"] if files else asked_for(some["url"])
        if digest.null_count < len(digest):
            both = pc.binary_join_element_wise(named, some["digest"], "\n")
            named = pc.coalesce(both, named)
        assert len(named) == len(places)
        assert not named.null_count
        return Rows(table, places, Hashes.of(named.cast(pa.binary()).to_pylist()), row_sizes(table))

    @staticmethod
    def joined(several: Sequence[Rows]) -> Rows:
        if len(several) == 1:
            return several[0]
        starts = np.cumsum([0, *(rows.table.num_rows for rows in several[:-1])])
        places = [rows.places + start for rows, start in zip(several, starts.tolist(), strict=True)]
        table = pa.concat_tables([rows.table for rows in several])
        sizes = np.concatenate([rows.sizes for rows in several])
        return Rows(table, np.concatenate(places), Hashes.joined([rows.hashes for rows in several]), sizes)

    def slice(self, start: int, end: int) -> Rows:
        low, high = np.searchsorted(self.places, [start, end])
        table, places = self.table.slice(start, end - start), self.places[low:high] - start
        return Rows(table, places, self.hashes[slice(low, high)], self.sizes[start:end])

    def __len__(self) -> int:
        return int(self.table.num_rows)


@dataclass(frozen=True)
class Marks:
    """Of each of `rows.places`: the row, numbered over the whole input, that has its URL first, or itself."""

    rows: Rows
    first_row: int
    origin: np.ndarray

    @staticmethod
    def of(rows: Rows, first_row: int, seen: Seen) -> Marks:
        """Mark rows that follow on all that `seen` knows of before `first_row`, the number of the first of them."""
        known = seen.find(rows.hashes, first_row)
        here = rows.places[rows.hashes.firsts()] + first_row
        return Marks(rows, first_row, np.where(known >= 0, known, here))

    @property
    def fetched(self) -> np.ndarray:
        """(n,) bool: which of `rows.places` have no row before them with the same URL."""
        first: np.ndarray = self.origin == self.rows.places + self.first_row
        return first

    def slice(self, end: int) -> Marks:
        """Those of the rows before `end`."""
        rows = self.rows.slice(0, end)
        return Marks(rows, self.first_row, self.origin[: len(rows.places)])

    def table(self, dataset: str) -> pa.Table:
        """The rows with every column that a plan has. A row that others of the stretch duplicate gets their captions as
        `captions` (each text once, in the order of the rows, at most `MOST_CAPTIONS`), and the first of them as its
        `caption` if it has none itself.
        """
        table, count = self.rows.table, len(self.rows)
        numbers = np.arange(self.first_row, self.first_row + count)
        digits = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0")
        again = ~self.fetched
        keys = [sample_key(dataset, row) for row in self.origin[again].tolist()]
        nothing = pa.nulls(count, pa.string())
        columns = {
            "key": pc.binary_join_element_wise(f"{dataset}-", digits, ""),
            "url": table["url"],
            **self._captions(),
            "duplicate_of": _replaced(nothing, self.rows.places[again], keys),
        }
        columns |= {name: table[name] for name in table.column_names if name not in columns}
        assert all(len(column) == count for column in columns.values())
        return pa.table(columns)

    def _captions(self) -> dict[str, pa.Array]:
        table = self.rows.table
        caption = table["caption"].combine_chunks()
        listed = table["captions"].combine_chunks() if "captions" in table.column_names else None
        captions = pa.nulls(len(caption), pa.list_(pa.string())) if listed is None else listed
        # Of rows that are fetched those with more to say than one caption; the others stay as they are.
        origin = self.origin - self.first_row
        later = (origin >= 0) & ~self.fetched
        owners = set(origin[later].tolist())
        if listed is not None:
            several = np.zeros(len(caption), np.bool_)
            several[self.rows.places[self.fetched]] = True
            owners.update(np.flatnonzero(several & pc.is_valid(listed).to_numpy(zero_copy_only=False)).tolist())
        if not owners:
            return {"caption": caption, "captions": captions}
        first = np.array(sorted(owners), np.int64)
        texts: dict[int, dict[str, None]] = {}
        # Owners before the rows that repeat their URL: these come after them.
        places = np.concatenate([first, self.rows.places[later]])
        for owner, own, more in zip(
            [*first.tolist(), *origin[later].tolist()],
            caption.take(pa.array(places)).to_pylist(),
            captions.take(pa.array(places)).to_pylist(),
            strict=True,
        ):
            held = texts.setdefault(owner, {})
            for text in (own, *(more or ())):
                # An ordered set is a dict of nothing; one more than are kept, as one of them is the `caption`.
                if text and text.strip() and len(held) <= MOST_CAPTIONS:
                    held[text] = None
        own_captions = caption.take(pa.array(first)).to_pylist()
        chosen = [next(iter(texts[owner]), own) for owner, own in zip(first.tolist(), own_captions, strict=True)]
        others = [list(texts[owner])[1:] or None for owner in first.tolist()]
        return {"caption": _replaced(caption, first, chosen), "captions": _replaced(captions, first, others)}

    def entries(self, table: pa.Table, *, captioned: bool) -> tuple[Hashes, np.ndarray]:
        """What later rows are to be duplicates of: hashes and rows. `table` is that of `table()`.

        In a list with captions a row without one is not fetched, so a later one of its URL, which has one, will be.
        """
        first = self.fetched
        if captioned:
            first = first & _says_something(table["caption"].take(pa.array(self.rows.places)))
        return self.rows.hashes[first], self.rows.places[first] + self.first_row


def shard_ends(marks: Marks, size: int, most: int, *, ended: bool) -> list[int]:
    """Where the shards that are complete end, as numbers of rows from the first on.

    A shard has `size` rows to be fetched and those that need no fetch up to the next one that does; but in all at most
    64 times `size` rows, or `most` if that is less (and more than `size`), and `SHARD_BYTES`. The input's end completes
    the last one.
    """
    count, limit = len(marks.rows), max(size, min(_MOST_ROWS * size, most))
    fetched = marks.rows.places[marks.fetched]
    filled = np.cumsum(marks.rows.sizes)
    ends: list[int] = []
    start = 0
    while start < count:
        next_one = int(np.searchsorted(fetched, start)) + size
        end = start + limit
        if next_one < len(fetched):
            end = min(end, int(fetched[next_one]))
        full = int(np.searchsorted(filled, SHARD_BYTES + (filled[start - 1] if start else 0), side="right"))
        if full < count:
            end = min(end, max(full, start + 1))
        if end > count:
            if ended:
                ends.append(count)
            break
        ends.append(end)
        start = end
    return ends


def row_sizes(table: pa.Table) -> np.ndarray:
    """(n,) int64: about how many bytes each row has, from its values alone."""
    sizes = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        if column.num_chunks:
            sizes += np.concatenate([_value_sizes(chunk) for chunk in column.chunks])
    return sizes


def _value_sizes(values: pa.Array) -> np.ndarray:
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        return _value_sizes(values.storage)
    if pa.types.is_struct(kind):
        return sum(map(_value_sizes, values.flatten()), np.zeros(len(values), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        within = np.concatenate([[0], np.cumsum(_value_sizes(values.flatten()))])
        ends = np.cumsum(pc.fill_null(pc.list_value_length(values), 0).to_numpy(), dtype=np.int64)
        between: np.ndarray = np.diff(within[ends], prepend=0)
        return between
    if pa.types.is_fixed_size_list(kind):
        return np.full(len(values), 8 * kind.list_size, np.int64)
    lengths = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    if any(is_one(kind) for is_one in lengths):
        counted: np.ndarray = pc.fill_null(pc.binary_length(values), 0).to_numpy().astype(np.int64)
        return counted
    # Numbers and times; of other kinds a guess.
    return np.full(len(values), 8, np.int64)


def asked_for(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """URLs as a server is asked for them: scheme and host in lower case, without a fragment."""
    plain = pc.match_substring_regex(urls, _LOWER)
    if pc.all(plain).as_py() and not any(_has_fragment(chunk) for chunk in urls.chunks):
        return urls
    odd = pc.or_(pc.invert(plain), pc.match_substring(urls, "#"))
    places = np.flatnonzero(odd.to_numpy())
    changed = [_asked_for(url) for url in urls.take(pa.array(places)).to_pylist()]
    return pa.chunked_array([_replaced(urls.combine_chunks(), places, changed)])


def _asked_for(url: str) -> str:
    start = _START.match(url)
    if start is None or "@" in start[0]:
        return url  # none that is fetched
    return start[0].encode().lower().decode() + url[start.end() :].partition("#")[0]


def _has_fragment(urls: pa.Array) -> bool:
    """Whether there may be a fragment in any: one look through their bytes, which is much faster than one at each."""
    data = urls.buffers()[2]
    return data is not None and bool((np.frombuffer(data, np.uint8) == ord("#")).any())


def _says_something(captions: pa.ChunkedArray) -> np.ndarray:
    """(n,) bool: which captions are not null, empty or white space."""
    sure: np.ndarray = pc.fill_null(pc.match_substring_regex(captions, "[0-9A-Za-z]"), False).to_numpy()
    # What is white space, Python says, as where it is decided what to fetch.
    others = captions.filter(pa.array(~sure)).to_pylist()
    result: np.ndarray = sure.copy()
    result[~sure] = [bool(text and text.strip()) for text in others]
    return result


def _replaced(column: pa.Array, places: np.ndarray, values: Sequence[Any]) -> pa.Array:
    """The column with other values at some places."""
    if not len(places):
        return column
    from_values = np.arange(len(column))
    from_values[places] = len(column) + np.arange(len(places))
    return pa.concat_arrays([column, pa.array(values, column.type)]).take(pa.array(from_values))
