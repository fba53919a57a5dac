"""A teacher cache out as `clip inference` of clip-retrieval writes it (see `clip_retrieval.py`)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards import Dataset, Folder, Shard, UserError
from shards.places import refuse_other_things
from teacher_cache.reader import TeacherCache
from teacher_cache.settings import Join


def export_clip_retrieval(cache: str, shards: str, out: str, *, teacher: str | None = None) -> int:
    """Write the first view and caption of every sample that has them, a partition for each shard; returns how many.

    `teacher` names the folder in the cache where it holds several. Every file appears whole; a killed export is begun
    again. Raises `UserError` if there is nothing to export.
    """
    dataset = Dataset.open(shards)
    refuse_other_things(Folder(out), "an export", {"img_emb", "text_emb", "metadata"})
    held = TeacherCache.open(cache, dataset, teacher, Join(policy="none"))
    if held.missing == len(dataset):
        raise UserError("none of the samples has embeddings", where=str(held.folder), do="Give the cache's shards")
    digits = len(str(len(dataset.shards) - 1))
    written = 0
    for place, shard in enumerate(dataset.shards):
        here = np.stack([np.full(shard.count, place), np.arange(shard.count)], axis=1).astype(np.int64)
        here = here[held.present(here)]
        number = f"{place:0{digits}d}"
        rows = here[:, 1].tolist()
        if held.views:
            _save(
                Folder(out).child("img_emb"), f"img_emb_{number}.npy", held.image(here, np.zeros(len(here), np.int64))
            )
        if "txt" in held.captions:
            _save(Folder(out).child("text_emb"), f"text_emb_{number}.npy", held.text(here))
        _write_metadata(Folder(out).child("metadata"), f"metadata_{number}.parquet", shard, rows)
        written += len(rows)
        shard.release()
    return written


def _save(folder: Folder, name: str, rows: npt.NDArray[np.float32]) -> None:
    sink = io.BytesIO()
    np.save(sink, rows.astype(np.float16), allow_pickle=False)
    folder.publish(name, sink.getvalue())


def _write_metadata(folder: Folder, name: str, shard: Shard, rows: Sequence[int]) -> None:
    urls = [shard.meta(row).get("url") for row in rows]
    columns = {
        "image_path": pa.array([shard.keys[row] for row in rows], pa.string()),
        "caption": pa.array([shard.caption(row) for row in rows], pa.string()),
        "url": pa.array([url if isinstance(url, str) else None for url in urls], pa.string()),
    }
    with folder.staged(name) as path:
        pq.write_table(pa.table(columns), str(path))
