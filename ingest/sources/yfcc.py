"""YFCC15M: OpenAI's list of photos (line number, photo id, photo hash) joined with YFCC100M's own files.

    subset → photo ids, sorted → lines of YFCC100M whose id is among them → title and description as the caption

Ids take 8 bytes a photo in memory; everything else streams. Rows have the order of YFCC100M's files. Photos of the
subset that are in none of those files come last, without a URL, so that each row of the subset is a row of the dataset.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.formats import YFCC_COLUMNS
from ingest.sources.columns import Chosen
from ingest.sources.delimited import split_fields
from ingest.sources.reader import Block, text_schema
from ingest.sources.text import read_lines
from shards import UserError

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_ENCODED = frozenset({"nickname", "device", "title", "description", "user_tags", "machine_tags"})
_ROWS = 1 << 16


class YfccReader:
    """Reads each file once, in order: a photo that a second line names again is left out."""

    def __init__(self, subset: str, encoding: str) -> None:
        self._encoding = encoding
        ids = [_photo_ids(lines.texts, subset) for lines in read_lines(subset)]
        rows = np.concatenate(ids) if ids else np.empty(0, np.int64)
        self._ids, self._counts = np.unique(rows, return_counts=True)
        self._found = np.zeros(len(self._ids), np.bool_)

    def schema(self, path: str) -> pa.Schema:  # noqa: ARG002 - all files are alike
        return text_schema([*YFCC_COLUMNS, "caption"])

    def blocks(self, path: str, chosen: Chosen) -> Iterator[Block]:
        names = [name for name in YFCC_COLUMNS if name in chosen.all or name in {"title", "description"}]
        places = [YFCC_COLUMNS.index(name) for name in names]
        for lines in read_lines(path, self._encoding):
            # Six of seven lines are not in the subset: only their ids are looked at.
            wanted = lines.take(self._wanted(lines.texts))
            if len(wanted):
                fields, faults = split_fields(wanted, len(YFCC_COLUMNS), places, self._encoding)
                yield Block(_finish(dict(zip(names, fields, strict=True)), chosen.all), faults)

    def _wanted(self, lines: pa.StringArray) -> np.ndarray:
        """The places of the lines whose photo is wanted and not found before, once for each of the subset's rows."""
        ids = _ids_of(lines)
        known = ids.is_valid().to_numpy(zero_copy_only=False)
        lines_at = np.flatnonzero(known)
        numbers = ids.drop_null().to_numpy()
        assert len(ids) == len(lines)
        assert len(numbers) == len(lines_at)
        at = np.searchsorted(self._ids, numbers)
        at[at == len(self._ids)] = 0
        hits = (self._ids[at] == numbers) & ~self._found[at] if len(self._ids) else np.zeros(len(at), np.bool_)
        at, lines_at = at[hits], lines_at[hits]
        _, first = np.unique(at, return_index=True)
        first.sort()
        self._found[at] = True
        return np.repeat(lines_at[first], self._counts[at[first]])

    def rest(self, chosen: Chosen) -> Iterator[Block]:
        missing = np.repeat(self._ids[~self._found], self._counts[~self._found])
        for start in range(0, len(missing), _ROWS):
            ids = pa.array(missing[start : start + _ROWS]).cast(pa.string())
            nothing = pa.nulls(len(ids), pa.string())
            arrays = [ids if column == "photo_id" else nothing for column in chosen.all]
            yield Block(pa.table(arrays, text_schema(chosen.all)), {})


def _ids_of(lines: pa.StringArray) -> pa.Array:
    """The photo id of each line, int64; null where there is none."""
    start = pc.split_pattern(lines, "\t", max_splits=2)
    whole = pc.equal(pc.list_value_length(start), 3)
    texts = pc.list_element(pc.if_else(whole, start, pa.scalar(["", "", ""])), 1)
    is_number = pc.match_substring_regex(texts, "^[0-9]{1,18}$")
    return pc.if_else(is_number, texts, pa.scalar(None, pa.string())).cast(pa.int64())


def _photo_ids(lines: pa.StringArray, subset: str) -> np.ndarray:
    ids = _ids_of(lines)
    if ids.null_count:
        bad = lines[pc.index(ids.is_null(), True).as_py()].as_py()
        raise UserError(
            f"the line {bad[:80]!r} is not a line number, photo id and photo hash",
            where=subset,
            do="Give OpenAI's yfcc100m_subset_data.tsv as --subset",
        )
    numbers: np.ndarray = ids.to_numpy()
    return numbers


def _finish(fields: dict[str, pa.Array], columns: Sequence[str]) -> pa.Table:
    texts = {
        name: pa.array([value and unquote_plus(value) for value in fields[name].to_pylist()], pa.string())
        for name in fields
        if name in _ENCODED
    }
    pairs = zip(texts["title"].to_pylist(), texts["description"].to_pylist(), strict=True)
    texts["caption"] = pa.array(
        [caption_of(title or "", description or "") for title, description in pairs], pa.string()
    )
    return pa.table([texts.get(column, fields.get(column)) for column in columns], text_schema(columns))


def caption_of(title: str, description: str) -> str:
    """Title and description, decoded, as one text: without HTML's tags and entities, white space made single spaces.

    A full stop stands between the two unless the title ends in a mark of its own.
    """
    first, second = (" ".join(html.unescape(_TAG.sub("", text)).split()) for text in (title, description))
    if not first or not second:
        return first or second
    return f"{first} {second}" if first[-1] in ".!?:;,…" else f"{first}. {second}"
