"""Rows with several captions: a list, or its JSON as text. The first that says anything is the caption."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_list_of_text(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_it(kind) for is_it in lists) and any(is_it(kind.value_type) for is_it in texts)


def several(values: pa.ChunkedArray) -> tuple[pa.Array | pa.ChunkedArray, pa.Array | None]:
    """The caption of each row, null where there is none, and its further ones, null where it has not several.

    Text is a list if it is JSON of one with nothing but texts and nulls in it: `["a", "b"]`, neither `[1]` nor `[a]`.
    Instead of further ones that are all null comes None.
    """
    found: dict[int, list[str | None]] = {}
    if is_list_of_text(values.type):
        found = {place: items for place, items in enumerate(values.to_pylist()) if items is not None}
        texts: list[str | None] = [None] * len(values)
    else:
        values = values.cast(pa.string())
        begins = pc.starts_with(values, "[")
        if not pc.any(begins).as_py():
            return values, None
        alike = pc.fill_null(pc.and_(begins, pc.ends_with(values, "]")), False)
        for place in np.flatnonzero(alike.to_numpy()).tolist():
            items = _parse(values[place].as_py())
            if items is not None:
                found[place] = items
        if not found:
            return values, None
        texts = values.to_pylist()
    further: list[list[str] | None] = [None] * len(values)
    for place, items in found.items():
        said = list(dict.fromkeys(text for text in items if text and text.strip()))
        texts[place] = said[0] if said else None
        further[place] = said[1:] or None
    return pa.array(texts, pa.string()), pa.array(further, pa.list_(pa.string()))


def _parse(text: str) -> list[str | None] | None:
    try:
        items = json.loads(text)
        if not isinstance(items, list) or not all(item is None or isinstance(item, str) for item in items):
            return None
        "".join(filter(None, items)).encode()  # JSON can spell half of a surrogate pair, which no UTF-8 can hold
    except (ValueError, RecursionError):
        return None
    return items
