"""What `clip inference` of clip-retrieval writes (github.com/rom1504/clip-retrieval).

    img_emb/img_emb_N.npy           (rows, D) float16, unit norm before rounding: one view, the model's evaluation
                                    preprocessing (for OpenAI's and most of open_clip's models the central square)
    text_emb/text_emb_N.npy         the same of the captions; float32 from multilingual models
    metadata/metadata_N.parquet     `image_path`, `caption`, and with --enable_metadata the fields of each JSON

N is the partition, with as many digits as the last one needs. Row i of the three
files of a partition is one sample; of a webdataset, `image_path` is the sample's key, of a folder the file's path. What
was not embedded has no file and no column. Which model it was is written nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards import UserError

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Partition:
    """The files of one partition; those that are not there are None."""

    images: str | None
    texts: str | None
    metadata: str


def partitions_of(folder: Path) -> list[Partition]:
    """In order. Raises `UserError` unless every partition has the same kinds of files."""
    found = []
    for path in sorted((folder / "metadata").glob("metadata_*.parquet"), key=lambda path: (len(path.name), path.name)):
        number = path.stem.removeprefix("metadata_")
        arrays = (folder / "img_emb" / f"img_emb_{number}.npy", folder / "text_emb" / f"text_emb_{number}.npy")
        images, texts = (str(array) if array.exists() else None for array in arrays)
        found.append(Partition(images, texts, str(path)))
    kinds = {(part.images is None, part.texts is None) for part in found}
    if len(kinds) != 1 or kinds == {(True, True)}:
        raise UserError(
            "it holds no metadata/metadata_N.parquet with img_emb/img_emb_N.npy or text_emb/text_emb_N.npy for each",
            where=str(folder),
            do="Give the --output_folder of `clip-retrieval inference`",
        )
    return found


def map_rows(path: str) -> Array:
    """(rows, D), mapped. Nothing pickled is read."""
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"not readable as an array ({error})", where=path, do="Restore it") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserError(f"it has shape {array.shape} and type {array.dtype}, wanted are rows of numbers", where=path)
    return array


def _metadata(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"not readable as Parquet ({error})", where=path, do="Restore it") from None


def has_column(path: str, column: str) -> bool:
    return column in _metadata(path).schema_arrow.names


def metadata_rows(path: str, column: str) -> int:
    file = _metadata(path)
    if column not in file.schema_arrow.names:
        has = ", ".join(file.schema_arrow.names)
        raise UserError(f"it has no column {column!r}; it has {has}", where=path, do="Give one of them as --column")
    return int(file.metadata.num_rows)
