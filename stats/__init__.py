"""Datasets in, one HTML page and a few lines out: what is in them, and which samples are behind each number.

Every shard is read once: `shard.py` (one shard's numbers) → `measures.py` (counts in flat memory, with keys of a few
samples) and `repeats.py` (which images and captions are there more than once, on disk), put together by `collect.py`,
beside `ledgers.py` (the rows that became no samples). `lines.py` and `page.py` say it. Read `collect.py` first.
"""

from shards.lazy import lazily

__getattr__ = lazily(__name__, "collect", "lines", "page")

__all__ = ["Figures", "figures_of", "lines_of", "page_of"]
