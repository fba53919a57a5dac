"""A dataset's ledgers in, one HTML page out: what came of every row, and why.

Read `report.py` first (the page), then `tally.py` (one pass over the ledgers).
"""

from ingest.report.report import write_report

__all__ = ["write_report"]
