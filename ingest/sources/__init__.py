"""Metadata files as one stream of Arrow tables, whatever they are: text, CSV, TSV, JSON, Parquet, YFCC100M.

Comes in: `SourceSettings`. Goes out: `Source.tables()`, in which every input row is a row, in the input's order, and
says itself what is wrong with it. Memory does not grow with the number of rows.

    files.py (what `paths` name; mistaken.py: what is no list) → text.py (bytes → lines, in any encoding)
    → delimited.py, quoted.py, objects.py, parquet.py, yfcc.py (a reader for each kind of file, as reader.py says)
    → columns.py with `ingest/formats.py` (which columns are the URL, the caption and those to keep), conditions.py,
    captions.py (several of one row)
    → source.py (all of it together; read this first)
"""

from ingest.sources.files import hash_input
from ingest.sources.source import Source

__all__ = ["Source", "hash_input"]
