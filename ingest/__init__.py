"""Metadata in, shards out: from a list of image URLs and captions to webdataset tars with every row accounted for.

    sources/ → plan/ → task.py → engines/ → fetch/ → images/ → tar and ledger.py
    and afterwards: retry.py (once more what may pass), report/ (a page)

Comes in: the published lists of CC3M, CC12M, YFCC15M, LAION and DataComp, or any txt, CSV, TSV, JSONL or Parquet.
Goes out: a dataset as `shards` defines it; the ledger `NNNNN.parquet` beside each tar has one row for every input row.

Read `run.py` first (the stage in one function), then `plan/plan.py` and `task.py`.
"""

from typing import TYPE_CHECKING

from shards.lazy import lazily

if TYPE_CHECKING:
    from ingest.run import IngestReport, ingest
    from ingest.settings import ImageSettings, IngestSettings, NetworkSettings, SourceSettings
else:
    __getattr__ = lazily(__name__, "settings", "run")

__all__ = [
    "ImageSettings",
    "IngestReport",
    "IngestSettings",
    "NetworkSettings",
    "SourceSettings",
    "ingest",
]
