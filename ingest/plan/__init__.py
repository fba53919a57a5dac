"""Cut the input into shards before it is fetched, so that workers, retries and order never change the output.

Comes in: rows from `sources`. Goes out: `dataset.json` and `_plan/`, and a shard's rows back from them.

    planning.py (a plan while it is fetched) → planner.py (what makes the parts; read this first)
    → inputs.py (is it the same list?), marking.py (duplicates, captions, where shards end) with seen.py (URLs of parts
    before), sense.py (is it a list of URLs?), parts.py (how rows are kept)
"""

from ingest.plan.parts import PLAN, planned_columns, read_part, read_rows, write_parts
from ingest.plan.plan import cut, make_plan
from ingest.plan.planner import SEEN
from ingest.plan.planning import Planning

__all__ = ["PLAN", "SEEN", "Planning", "cut", "make_plan", "planned_columns", "read_part", "read_rows", "write_parts"]
