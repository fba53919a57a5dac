"""Whether a list makes sense as a list of URLs, judged by its rows as they go by."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ingest.settings import SourceSettings
from shards import UserError

_ENOUGH, _SENSE = 100, 0.01
"""From so many rows on, the share that must have a URL for the columns to be the right ones."""
_URL = r"^(?i:https?:)?//"


class Sense:
    """Sees the tables of a `Source` and counts what tells a list of URLs from something else."""

    def __init__(self) -> None:
        self._rows = self._urls = self._met = 0

    def see(self, table: pa.Table) -> None:
        self._rows += table.num_rows
        self._urls += pc.sum(pc.match_substring_regex(table["url"], _URL)).as_py() or 0
        self._met += table["filtered_by"].null_count

    def refuse_nonsense(self, source: SourceSettings, where: str) -> None:
        """Raise `UserError` for a list that would only fill a ledger with one and the same failure."""
        rows, conditions = self._rows, " and ".join(source.where)
        if not rows:
            raise UserError("the input has no rows", where=where)
        if rows >= _ENOUGH and self._urls < _SENSE * rows:
            raise UserError(
                f"{self._urls} of {rows} rows have a URL that begins with http",
                where=where,
                do="Check --format and --url-column: the columns may be swapped",
            )
        if conditions and not self._met:
            raise UserError(f"no row of {rows} meets {conditions}", where=where, do="Check the condition's spelling")
