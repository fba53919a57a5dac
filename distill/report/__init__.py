"""Run folders in, HTML pages out: what a run trained and how it went, and several runs over each other.

Read `run_page.py` and `comparison.py` first (the two pages), then `panels.py` (which
curves).
"""

from distill.report.comparison import write_comparison
from distill.report.run_page import write_run_page

__all__ = ["write_comparison", "write_run_page"]
