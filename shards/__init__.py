"""What a dataset on disk is, and how work runs over it. The foundation of every stage.

Comes in: samples (image bytes, caption, metadata) or a folder of published shards, local or on an object store.
Goes out: webdataset tars with an offset index, a ledger and a published record each; a strict reader; a runner
that maps one task over many shards, in this process or on Ray.

Read `record.py` first (what "done" means), then `task.py` and `runner.py` (how work becomes records), and `dataset.py`
(what a dataset says of itself). A script of your own makes a dataset with `write_dataset`.
Nothing here imports torch or ray at module level.
"""

from typing import TYPE_CHECKING

from shards.errors import IncompleteError, ShardError, UserError
from shards.fingerprint import fingerprint, seed64
from shards.lazy import lazily

if TYPE_CHECKING:
    from shards.executor import InProcess
    from shards.reader import Dataset
    from shards.record import FileEntry, ShardRecord, published_records, read_records
    from shards.runner import Summary, run_shards
    from shards.sample import Sample
    from shards.samples import write_dataset
    from shards.shard import Shard
    from shards.sound import sound_records
    from shards.storage import Folder
    from shards.task import ShardTask, Spec, Worker
    from shards.verify import verify_dataset
    from shards.writer import ShardWriter
else:
    __getattr__ = lazily(
        __name__,
        "task",
        "storage",
        "record",
        "sound",
        "executor",
        "runner",
        "reader",
        "verify",
        "writer",
        "samples",
        "sample",
    )

__all__ = [
    "Dataset",
    "FileEntry",
    "Folder",
    "InProcess",
    "IncompleteError",
    "Sample",
    "Shard",
    "ShardError",
    "ShardRecord",
    "ShardTask",
    "ShardWriter",
    "Spec",
    "Summary",
    "UserError",
    "Worker",
    "fingerprint",
    "published_records",
    "read_records",
    "run_shards",
    "seed64",
    "sound_records",
    "verify_dataset",
    "write_dataset",
]
