"""Rows with the same URL, found and marked in the parts of a plan. Memory does not grow with the number of rows.

URLs → 128-bit hashes with their rows, spilled by hash → sorted, one partition at a time → (row, first row) by part
→ captions of the later rows, by part of the first → parts written again; those without a duplicate stay as they are
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.plan.parts import Part, read_part, rewrite_part
from shards import Folder
from shards.keys import sample_key

_PARTITIONS = 256
_HELD = 1 << 18
"""Hashes held in memory before they are spilled."""
_RECORD = np.dtype([("low", "<u8"), ("high", "<u8"), ("row", "<i8")])
_PAIR = np.dtype([("row", "<i8"), ("first", "<i8")])
_LATER = pa.schema([("first", pa.int64()), ("caption", pa.string())])
MOST_CAPTIONS = 1000
"""Captions of other rows kept with a sample: a placeholder's URL may stand in millions of rows."""


class Duplicates:
    """Takes the URLs of all rows in order, then marks the duplicates. Its files are gone when its context is left."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._scratch = tempfile.TemporaryDirectory(prefix="clipstill-")
        self._folder = Path(self._scratch.name)
        self._held: list[np.ndarray] = []
        self._rows = 0

    def __enter__(self) -> Duplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def add(self, table: pa.Table) -> None:
        """Take the URLs of the next rows. Rows without one, and filtered ones, neither are nor have duplicates."""
        taken = pc.and_(pc.not_equal(table["url"], ""), pc.is_null(table["filtered_by"]))
        places = np.flatnonzero(pc.fill_null(taken, False).to_numpy())
        # Rows that promise different bytes are different files, wherever they lie.
        named = table.select(["url", "digest"]).take(pa.array(places))
        urls = pc.binary_join_element_wise(named["url"], named["digest"], "\n", null_handling="skip").to_pylist()
        assert len(urls) == len(places)
        records = np.empty(len(urls), _RECORD)
        # Python's hash is keyed anew in every process; of a text and of the text reversed it is two of 64 bits.
        records["low"] = np.fromiter(map(hash, urls), np.int64, len(urls)).view(np.uint64)
        records["high"] = np.fromiter([hash(url[::-1]) for url in urls], np.int64, len(urls)).view(np.uint64)
        records["row"] = places + self._rows
        self._rows += table.num_rows
        self._held.append(records)
        if sum(map(len, self._held)) >= _HELD:
            self._spill()

    def _spill(self) -> None:
        records = np.concatenate(self._held) if self._held else np.empty(0, _RECORD)
        self._held = []
        _append_by(self._folder, "urls", (records["low"] % _PARTITIONS).astype(np.uint16), records)

    def mark(self, folder: Folder, parts: list[Part]) -> list[Part]:
        """Publish again the parts that duplicates, or rows that have some, are in; returns all parts as they now are.

        A duplicate gets `duplicate_of`, the key of the first row with its URL. That row gets the other captions as
        `captions` (each text once, in the order of the rows, at most `MOST_CAPTIONS`), and as its `caption` the first
        of them if it has none itself.
        """
        self._spill()
        ends = np.cumsum([part["rows"] for part in parts])
        for partition in range(_PARTITIONS):
            pairs = _find_pairs(_load(self._folder / f"urls-{partition}", _RECORD))
            _append_by(self._folder, "pairs", np.searchsorted(ends, pairs["row"], side="right"), pairs)
        for number, part in enumerate(parts):
            if (self._folder / f"pairs-{number}").exists():
                self._collect_captions(folder, part, number, ends)
        return [self._mark_part(folder, part, number, ends) for number, part in enumerate(parts)]

    def _pairs_of(self, number: int) -> np.ndarray:
        return np.sort(_load(self._folder / f"pairs-{number}", _PAIR), order="row")

    def _collect_captions(self, folder: Folder, part: Part, number: int, ends: np.ndarray) -> None:
        """Lay the captions of a part's duplicates beside the part that has the first row of their URL."""
        pairs = self._pairs_of(number)
        taken: list[pa.Array] = []
        for start, batch in _numbered(read_part(folder, part, ["caption"]), ends[number] - part["rows"]):
            low, high = np.searchsorted(pairs["row"], [start, start + batch.num_rows])
            taken.append(batch["caption"].take(pa.array(pairs["row"][low:high] - start)))
        captions = pa.concat_arrays(taken)
        homes = np.searchsorted(ends, pairs["first"], side="right")
        for home in np.unique(homes):
            there = homes == home
            later = pa.record_batch([pa.array(pairs["first"][there]), captions.filter(pa.array(there))], schema=_LATER)
            with (self._folder / f"captions-{home}").open("ab") as file, pa.ipc.new_stream(file, _LATER) as stream:
                stream.write_batch(later)

    def _captions_for(self, number: int) -> dict[int, dict[str, None]]:
        """First row → the texts of its later rows, in order. An ordered set is a dict of nothing."""
        texts: dict[int, dict[str, None]] = {}
        path = self._folder / f"captions-{number}"
        if path.exists():
            with path.open("rb") as file:
                while file.tell() < path.stat().st_size:
                    for batch in pa.ipc.open_stream(file):
                        for first, caption in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                            held = texts.setdefault(first, {})
                            # One more than are kept: the row's own caption is among them at most once.
                            if caption and caption.strip() and len(held) <= MOST_CAPTIONS:
                                held[caption] = None
        return texts

    def _mark_part(self, folder: Folder, part: Part, number: int, ends: np.ndarray) -> Part:
        pairs, texts = self._pairs_of(number), self._captions_for(number)
        if not len(pairs) and not texts:
            return part
        firsts = np.array(sorted(texts), np.int64)

        def marked() -> Iterator[pa.RecordBatch]:
            for start, batch in _numbered(read_part(folder, part), ends[number] - part["rows"]):
                low, high = np.searchsorted(pairs["row"], [start, start + batch.num_rows])
                keys = [sample_key(self._dataset, first) for first in pairs["first"][low:high].tolist()]
                known = _set(batch, "duplicate_of", pairs["row"][low:high] - start, keys)
                low, high = np.searchsorted(firsts, [start, start + batch.num_rows])
                captions = [texts[row] for row in firsts[low:high].tolist()]
                yield _with_captions(known, firsts[low:high] - start, captions)

        return rewrite_part(folder, part, marked())


def _with_captions(batch: pa.RecordBatch, places: np.ndarray, texts: list[dict[str, None]]) -> pa.RecordBatch:
    own = batch["caption"].take(pa.array(places)).to_pylist()
    chosen: list[str | None] = []
    others: list[list[str] | None] = []
    for caption, found in zip(own, texts, strict=True):
        chosen.append(caption if caption and caption.strip() else next(iter(found), caption))
        others.append([text for text in found if text != chosen[-1]][:MOST_CAPTIONS] or None)
    return _set(_set(batch, "caption", places, chosen), "captions", places, others)


def _set(batch: pa.RecordBatch, name: str, places: np.ndarray, values: Sequence[Any]) -> pa.RecordBatch:
    """The batch with other values of a column at some places."""
    if not len(places):
        return batch
    number = batch.schema.get_field_index(name)
    field, column = batch.schema.field(number), batch.column(number)
    from_values = np.arange(batch.num_rows)
    from_values[places] = batch.num_rows + np.arange(len(places))
    both = pa.concat_arrays([column, pa.array(values, field.type)])
    return batch.set_column(number, field, both.take(pa.array(from_values)))


def _numbered(batches: Iterator[pa.RecordBatch], row: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each batch with the number of its first row."""
    for batch in batches:
        yield row, batch
        row += batch.num_rows


def _find_pairs(records: np.ndarray) -> np.ndarray:
    """Each later record with the row of the first of the same hash, in the order of the rows."""
    order = np.argsort(records["low"])
    low = records["low"][order]
    same = low[1:] == low[:-1]
    # Nearly all hashes are alone: only those that are not are looked at closely.
    alike = np.zeros(len(records), np.bool_)
    alike[1:] |= same
    alike[:-1] |= same
    records = records[order[alike]]
    records = records[np.lexsort((records["row"], records["high"], records["low"]))]
    repeats = np.zeros(len(records), np.bool_)
    repeats[1:] = (records["low"][1:] == records["low"][:-1]) & (records["high"][1:] == records["high"][:-1])
    heads = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(records))))
    pairs = np.empty(int(repeats.sum()), _PAIR)
    pairs["row"], pairs["first"] = records["row"][repeats], records["row"][heads[repeats]]
    return pairs[np.argsort(pairs["row"])]


def _append_by(folder: Path, name: str, group: np.ndarray, records: np.ndarray) -> None:
    """Append each group's records, in their order, to the file `name-GROUP`."""
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group))
    for number, some in enumerate(np.split(records[order], ends[:-1])):
        if len(some):
            with (folder / f"{name}-{number}").open("ab") as file:
                file.write(some.tobytes())


def _load(path: Path, kind: np.dtype) -> np.ndarray:
    return np.fromfile(path, kind) if path.exists() else np.empty(0, kind)
