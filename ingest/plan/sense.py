"""Whether a list makes sense as a list of URLs, judged by its rows as they go by."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from ingest.advice import LOCAL_PATH, PACK
from ingest.settings import SourceSettings
from shards import UserError

_ENOUGH, _SENSE = 100, 0.01
"""From so many rows on, the share that must have a URL for the columns to be the right ones."""
_URL = r"^(?i:https?:)?//"


class Sense:
    """Sees the tables of a `Source` and counts what tells a list of URLs from something else."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first_fault: str | None = None
        self._first_path: str | None = None

    def see(self, table: pa.Table) -> None:
        counts, url = self._counts, table["url"]
        counts["rows"] += table.num_rows
        counts["met"] += table["filtered_by"].null_count
        begins = pc.match_substring_regex(url, _URL)
        urls = pc.sum(begins).as_py() or 0
        counts["nothing"] += url.null_count
        counts["urls"] += urls
        if urls < table.num_rows:
            self._see_others(table.filter(pc.invert(pc.fill_null(begins, False))))

    def _see_others(self, table: pa.Table) -> None:
        """Rows without a URL: what they have in its place."""
        counts = self._counts
        faults = table["fault"].drop_null()
        counts["faults"] += len(faults)
        paths = table["url"].filter(pc.match_substring_regex(table["url"], LOCAL_PATH))
        counts["paths"] += len(paths)
        counts["swapped"] += (
            pc.sum(pc.match_substring_regex(table["caption"].filter(table["fault"].is_null()), _URL)).as_py() or 0
        )
        if len(faults) and self._first_fault is None:
            self._first_fault = faults[0].as_py()
        if len(paths) and self._first_path is None:
            self._first_path = paths[0].as_py()

    def refuse_nonsense(self, source: SourceSettings, where: str) -> None:
        """Raise `UserError` for a list that would only fill a ledger with one and the same failure."""
        counts, conditions = self._counts, " and ".join(source.where)
        rows = counts["rows"]
        if source.files:
            counts["urls"] = rows - counts["nothing"]
        if not rows:
            raise UserError("the input has no rows", where=where)
        if rows >= _ENOUGH and counts["urls"] < _SENSE * rows:
            problem, do = self._cause("--column" if source.files else "--url-column")
            what = "a path" if source.files else "a URL"
            raise UserError(f"{counts['urls']} of {rows} rows have {what}: {problem}", where=where, do=do)
        if conditions and not counts["met"]:
            raise UserError(f"no row of {rows} meets {conditions}", where=where, do="Check the condition's spelling")

    def _cause(self, column: str) -> tuple[str, str]:
        """Why next to no row has a URL, and what to do about it."""
        counts = self._counts
        most = 0.5 * (counts["rows"] - counts["urls"])
        if counts["faults"] > most:
            do = "Check --format, --columns, --quoted and --encoding"
            return f"{counts['faults']} are faulty, the first at {self._first_fault}", do
        if counts["swapped"] > most:
            return (
                "the captions are URLs, so the columns are swapped",
                f"Check --format, {column} and --caption-column",
            )
        if counts["paths"] > most:
            problem = f"{counts['paths']} name local files, such as {self._first_path!r}, and nothing was to be fetched"
            return problem, PACK
        if counts["nothing"] > most:
            return "the others have nothing there", f"Check --format and {column}"
        return "the others begin with neither http nor //", f"Check --format and {column}"
