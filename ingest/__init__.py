"""Metadata in, shards out: from a list of image URLs and captions to webdataset tars with every row accounted for.

Comes in: CC3M's TSV, or any CSV, TSV or Parquet with named columns.
Goes out: a dataset as `shards` defines it; the ledger `NNNNN.parquet` beside each tar has one row for every input row.

Read `run.py` first (the stage in one function), then `plan.py` and `task.py`.
"""

from ingest.run import ingest
from ingest.settings import ImageSettings, IngestSettings, SourceSettings

__all__ = ["ImageSettings", "IngestSettings", "SourceSettings", "ingest"]
