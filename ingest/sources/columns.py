"""Which columns of a file are the URL, the caption, the expected hash, those to keep, and those with conditions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from ingest.formats import Layout
from ingest.settings import SourceSettings
from shards import UserError
from shards.conditions import Condition

_URL = re.compile(r"\s*\"?https?://", re.IGNORECASE)
_DO = "Name the right ones with --url-column, --caption-column, --hash-column, --keep and --where"


FILE_COLUMNS = ("filepath", "file_path", "path", "image_path", "file_name", "filename", "image", "jpg", "jpeg", "img")
"""What columns of files, or of images themselves, are called: OpenCLIP's first."""


class Wanted(NamedTuple):
    """A column to keep: the first of its possible names, and the name it gets (None: the one it has)."""

    name: str
    output: str | None


@dataclass(frozen=True)
class Chosen:
    """Names of columns in one file: of the URL, caption and digest, those to keep, and those with conditions.

    Without a column of URLs, `image` is the one with the bytes themselves, which is not read for the plan.
    """

    url: str | None
    caption: str | None
    digest: str | None
    kept: dict[Wanted, str]
    conditions: tuple[tuple[Condition, str], ...]
    image: str | None = None

    @property
    def texts(self) -> list[str]:
        """The columns that are text whatever their type."""
        return list(dict.fromkeys(name for name in (self.url, self.caption, self.digest) if name is not None))

    @property
    def all(self) -> list[str]:
        """Every column that is needed, once."""
        return list(dict.fromkeys([*self.texts, *self.kept.values(), *(name for _, name in self.conditions)]))


def choose_columns(
    path: str, schema: pa.Schema, source: SourceSettings, layout: Layout, conditions: Sequence[Condition]
) -> Chosen:
    """Find what `source` asks for, or else the layout's usual names, among a file's columns.

    Raises `UserError` for a column that is asked for or cannot be done without, and is absent or there twice.
    """

    have = schema.names

    def need(names: Sequence[str], do: str = _DO) -> str:
        found = _find(path, have, names)
        if found is None:
            wanted = " or ".join(map(repr, names))
            if any(map(_URL.match, have)):
                do = "Its first line seems to be a row: name the columns with --columns, as in --columns caption,url"
            raise UserError(f"no column {wanted}; the columns are {', '.join(map(repr, have))}", where=path, do=do)
        return found

    if not have:
        raise UserError("the file is empty", where=path)
    usual = FILE_COLUMNS if source.files else layout.url
    url: str | None = need([source.url_column] if source.url_column else usual)
    image = None
    if source.files and holds_bytes(schema.field(url).type):
        url, image = None, url
    caption = None
    if source.captions:
        do = f"{_DO}; --no-captions takes images alone"
        titles = (*layout.caption, "title") if source.files else layout.caption
        caption = need([source.caption_column] if source.caption_column else titles, do)
    digest = need([source.hash_column]) if source.hash_column else _find(path, have, layout.digest)
    asked = {name.lower() for name in source.keep}
    kept: dict[Wanted, str] = {}
    for names, output in layout.kept:
        found = _find(path, have, names)
        if found is not None and (output or found).lower() not in asked:
            kept[Wanted(names[0], output)] = found
    kept.update({Wanted(name, name): need([name]) for name in source.keep})
    found_conditions = tuple((condition, need([condition.column])) for condition in conditions)
    return Chosen(url, caption, digest, kept, found_conditions, image)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column has images themselves: bytes, or the hub's structure of bytes and path."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
    types = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_it(kind) for is_it in types)


def _find(path: str, have: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of `names` that is a column: spelled so, or else but for upper and lower case."""
    for name in names:
        matches = [column for column in have if column == name]
        matches = matches or [column for column in have if column.lower() == name.lower()]
        if len(matches) > 1:
            raise UserError(f"has {len(matches)} columns {name!r}", where=path, do="Rename one of them")
        if matches:
            return matches[0]
    return None
