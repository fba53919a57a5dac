"""Cut the input into shards before any download.

Comes in: rows from `sources`. Goes out: `dataset.json` and `_plan/`, and a shard's rows back from them.
Read `plan.py` first, then `parts.py` (how the rows are kept) and `duplicates.py` (a URL is fetched once).
"""

from ingest.plan.parts import PLAN, read_part, read_rows, write_parts
from ingest.plan.plan import cut, make_plan

__all__ = ["PLAN", "cut", "make_plan", "read_part", "read_rows", "write_parts"]
