"""A cache in, one HTML page and a table of scores out: do images and captions agree, what is there twice, which shards
are odd.

Read `report.py` first (the page), then `scores.py` (one pass over the cache), `duplicates.py` (the nearest other
image) and `shard_drift.py` (which shards are not like the others).
"""

from teacher_cache.report.report import ReportFacts, report_cache

__all__ = ["ReportFacts", "report_cache"]
