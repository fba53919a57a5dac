"""Which captions a teacher embeds, and a student reads.

    txt                         the sample's KEY.txt
    json:FIELD[*N]              a field of KEY.json; a list gives several captions
    table:PATH#COLUMN[*N]       a column of a Parquet table with a `key` column, for captions made elsewhere
    NAME=...                    any of them under a name of your own: `long=json:said` makes the layer captions-long

N (1 unless given) is how many captions each sample has in the layer. A list that is longer is cut; one that is shorter
is repeated in turn, which gives each of its captions the same weight. NAME is lower-case letters, digits, - and _.
Without one a source is called txt, json-FIELD or table-COLUMN, so two tables with one column name need it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shards.errors import UserError

if TYPE_CHECKING:
    from shards import Dataset, Shard
    from teacher_cache.caption_table import CaptionTable

_FORMS = (
    "Write txt, json:FIELD, json:FIELD*N or table:PATH#COLUMN*N, with NAME= before it for a name of your own "
    "(lower-case letters, digits, - and _)"
)


@dataclass(frozen=True)
class CaptionSource:
    """Where the captions of a layer come from. Make one with `parse`."""

    kind: Literal["txt", "json", "table"]
    column: str = ""
    path: str = ""
    count: int = 1
    own_name: str = ""
    _tables: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @staticmethod
    def parse(text: str) -> CaptionSource:
        """Raises `UserError` if the text has none of the forms above, or the table is not there."""
        found = re.fullmatch(
            r"(?:([a-z0-9_-]+)=)?(?:(txt)|(json):([^*#]+?)(?:\*(\d+))?|(table):(.+)#([^*#]+?)(?:\*(\d+))?)", text
        )
        if not found:
            raise UserError("no captions can be read from this", where=text, do=_FORMS)
        name, txt, json_kind, json_field, json_count, _, path, column, table_count = found.groups(default="")
        count = int(json_count or table_count or 1)
        if not 1 <= count <= 1000:
            raise UserError(f"{count} captions a sample", where=text, do="Ask for 1 to 1000")
        if txt:
            return CaptionSource("txt", own_name=name)
        if json_kind:
            return CaptionSource("json", json_field, "", count, name)
        # Workers may run in another directory.
        source = CaptionSource("table", column, str(Path(path).absolute()), count, name)
        source.table.check()
        return source

    @staticmethod
    def read(value: object) -> object:
        """A source from its text; anything else is left as it is."""
        return CaptionSource.parse(value) if isinstance(value, str) else value

    @property
    def name(self) -> str:
        """The layer's name after `captions-`: equal names in one cache mean the same source."""
        if self.own_name:
            return self.own_name
        if self.kind == "txt":
            return "txt"
        plain = re.sub(r"[^a-z0-9_-]+", "-", self.column.lower()).strip("-")
        return f"{self.kind}-{plain or 'captions'}"

    @property
    def stored(self) -> bool:
        """Whether the layer holds the texts too, because the shards do not."""
        return self.kind == "table"

    def identity(self) -> dict[str, Any]:
        """JSON-able; part of the layer's fingerprint. A table counts by its content, wherever it lies."""
        identity: dict[str, Any] = {"kind": self.kind, "count": self.count}
        if self.kind != "txt":
            identity["column"] = self.column
        if self.kind == "table":
            identity["sha256"] = self.table.sha256
        return identity

    @property
    def table(self) -> CaptionTable:
        from teacher_cache.caption_table import CaptionTable  # noqa: PLC0415 - brings Arrow; most sources are no tables

        if "table" not in self._tables:
            self._tables["table"] = CaptionTable(self.path, self.column)
        table: CaptionTable = self._tables["table"]
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}

    def texts(self, shard: Shard, rows: Sequence[int]) -> list[list[str]]:
        """For each caption number the captions of these rows: `count` lists of len(rows).

        Raises `UserError` naming the first sample that has none.
        """
        if self.kind == "txt":
            found: list[list[str]] = [[shard.caption(row)] for row in rows]
        elif self.kind == "json":
            found = [_listed(shard.meta(row).get(self.column)) for row in rows]
        else:
            found = [_listed(value) for value in self.table.values([shard.keys[row] for row in rows])]
        for row, captions in zip(rows, found, strict=True):
            if not captions:
                where = f"{self.path} (column {self.column})" if self.kind == "table" else f"{shard.folder}"
                raise UserError(
                    f"{shard.keys[row]} has no caption in {self.column!r}",
                    where=where,
                    do="Every sample needs one: add it, or choose another source",
                )
        return [[captions[number % len(captions)] for captions in found] for number in range(self.count)]


def check_captioned(dataset: Dataset, sources: Sequence[CaptionSource]) -> None:
    """Raise `UserError` if a source is the shards' own captions, and they have none."""
    if not dataset.captioned and any(source.kind == "txt" for source in sources):
        raise UserError(
            "this dataset has no captions: its list had none",
            where=str(dataset.folder),
            do="Embed its images alone with --towers image, or captions made elsewhere with "
            "--captions table:PATH.parquet#COLUMN",
        )


def source_of(identity: dict[str, Any], path: str = "") -> CaptionSource:
    """The source of a layer, from its `identity`; of a table the caller knows the path."""
    return CaptionSource(identity["kind"], identity.get("column", ""), path, identity["count"])


def _listed(value: Any) -> list[str]:
    if isinstance(value, str) and value.startswith("["):
        # A list that a sample's JSON has as the JSON of itself.
        with contextlib.suppress(ValueError):
            listed = json.loads(value)
            value = listed if all(isinstance(text, str) for text in listed) else value
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]
