"""Caches in and out of the formats of others: DataCompDR's tars, clip-retrieval's arrays.

Comes in: embeddings that somebody else published or computed, and a dataset of ours with the images.
Goes out: a teacher cache like any other; and back, files as those programs write them.

    datacompdr.py           what a sample of DataCompDR is; read it first
    import_datacompdr.py    tars.py, shards/key_index.py (each sample's place) → safe_arrays.py (its arrays) → layers.py
    export_datacompdr.py
    clip_retrieval.py       what clip-retrieval writes; then import_clip_retrieval.py, export_clip_retrieval.py

Nothing of the files is believed: no pickle is run, sizes are bounded, and what belongs to another image is left out.
"""

from teacher_cache.exchange.export_clip_retrieval import export_clip_retrieval
from teacher_cache.exchange.export_datacompdr import ExportReport, export_datacompdr
from teacher_cache.exchange.import_clip_retrieval import import_clip_retrieval
from teacher_cache.exchange.import_datacompdr import import_datacompdr
from teacher_cache.exchange.layers import ImportReport, work_of_exchange

__all__ = [
    "ExportReport",
    "ImportReport",
    "export_clip_retrieval",
    "export_datacompdr",
    "import_clip_retrieval",
    "import_datacompdr",
    "work_of_exchange",
]
