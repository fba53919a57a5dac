"""Parquet as the hub has it: an image and a list of captions (Flickr, COCO), Winoground, WinoGAViL."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.sets.base import EvaluationSet, Images, Place, SetSettings, refuse_empty
from evaluation.sets.dataset import retrieval
from evaluation.sets.files import Tree
from evaluation.sets.winoground import FIELDS
from evaluation.tasks import Association, Matching, Task
from shards.errors import UserError, one_line

_CAPTIONS = ("captions", "caption", "texts", "text", "sentences", "sentence", "raw")
_WINOGAVIL = ("cue", "candidates", "associations", "candidate_images")
_HELD = 4
"""Row groups that stay read."""


def fits(place: Place) -> bool:
    if place.file is not None:
        return place.file.endswith(".parquet")
    if place.files & {"dataset.json"}:
        return False
    return bool(_parquets(place.files)) or (
        "data" in place.folders and bool(_parquets(place.tree.child("data").listed()[1]))
    )


def _parquets(files: frozenset[str]) -> list[str]:
    return sorted(name for name in files if name.endswith(".parquet"))


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:
    tree, files = place.tree, [place.file] if place.file else _parquets(place.files)
    if not files:
        tree = tree.child("data")
        files = _split(_parquets(tree.listed()[1]), str(tree))
    elif place.file is None:
        files = _split(files, str(tree))
    table = _Table(tree, [name for name in files if name])
    refuse_empty(len(table), str(tree), "rows")
    columns = set(table.schema.names)
    if set(FIELDS) <= columns:
        return _winoground(table)
    if set(_WINOGAVIL) <= columns:
        return _winogavil(table)
    return _retrieval(place, table, settings)


def _split(files: list[str], where: str) -> list[str]:
    """Of files named by their split (`test-00000-of-00001.parquet`) those to test on."""
    named = {split: [name for name in files if name.lower().startswith(split)] for split in ("test", "valid", "train")}
    if not any(named.values()):
        return files
    for split in ("test", "valid"):
        if named[split]:
            return named[split]
    raise UserError("only the training split is here", where=where, do="Give the test split's files")


def _retrieval(place: Place, table: _Table, settings: SetSettings) -> EvaluationSet:
    schema = table.schema
    image = next((field.name for field in schema if _is_image(field.type)), None)
    text = next((name for name in _CAPTIONS if name in schema.names and _is_text(schema.field(name).type)), None)
    if image is None or text is None:
        missing = "image (bytes, or bytes and path)" if image is None else f"captions ({', '.join(_CAPTIONS)})"
        raise UserError(
            f"there is no column of {missing}; it has {', '.join(schema.names)}",
            where=place.url,
            do="Rename the column",
        )
    images = _Images(table, (image,))
    name = place.name.removesuffix(".parquet")
    if not settings.retrieval:
        return EvaluationSet(name, images, {}, left_out=True)
    captions: list[str] = []
    image_of: list[int] = []
    for at, value in enumerate(table.column(text)):
        said = [value] if isinstance(value, str) else [one for one in value or [] if isinstance(one, str)]
        if not said:
            raise UserError("the image has no caption", where=table.name(at), do="Leave such rows out")
        captions += said
        image_of += [at] * len(said)
    task: Task = retrieval(captions, image_of, first=settings.protocol == "clip-kd")
    return EvaluationSet(name, images, {"retrieval": task})


def _winoground(table: _Table) -> EvaluationSet:
    captions = tuple(zip(table.column("caption_0"), table.column("caption_1"), strict=True))
    places = np.arange(2 * len(table), dtype=np.int64).reshape(-1, 2)
    return EvaluationSet("winoground", _Images(table, FIELDS[:2]), {"winoground": Matching(places, captions)})


def _winogavil(table: _Table) -> EvaluationSet:
    """Images are each row's candidates, one row after the other."""
    candidates, right = table.column("candidates"), table.column("associations")
    ends = np.cumsum([0] + [len(row) for row in candidates])
    places = tuple(np.arange(start, end) for start, end in pairwise(ends))
    hits = tuple(np.isin(row, known) for row, known in zip(candidates, right, strict=True))
    task = Association(tuple(table.column("cue")), places, hits)
    return EvaluationSet("misc-winogavil", _Candidates(table, ends), {"winogavil": task})


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner))


class _Table:
    """Rows of several Parquet files, a row group at a time."""

    def __init__(self, tree: Tree, files: list[str]) -> None:
        self._where, self._files, self._opened = str(tree), files, []
        for name in files:
            try:
                self._opened.append(pq.ParquetFile(tree.local(name)))
            except FileNotFoundError:
                raise UserError("there is no such file", where=f"{tree}/{name}", do="Check the path") from None
            except (pa.ArrowException, OSError) as error:
                told = one_line(str(error))
                raise UserError(
                    f"not readable as Parquet ({told})", where=f"{tree}/{name}", do="Fetch it again"
                ) from None
        self.schema = self._opened[0].schema_arrow if self._opened else pa.schema([])
        self._groups = [
            (file, group, opened.metadata.row_group(group).num_rows)
            for file, opened in enumerate(self._opened)
            for group in range(opened.metadata.num_row_groups)
        ]
        self._ends = np.cumsum([0] + [rows for _, _, rows in self._groups])
        self._turn, self._held = threading.Lock(), dict[tuple[int, str], pa.ChunkedArray]()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, at: int) -> str:
        return f"{self._where}, row {at}"

    def column(self, name: str) -> list[Any]:
        return [value for opened in self._opened for value in opened.read(columns=[name])[name].to_pylist()]

    def value(self, at: int, name: str) -> Any:
        place = int(np.searchsorted(self._ends, at, side="right")) - 1
        with self._turn:
            held = self._held.get((place, name))
            if held is None:
                file, group, _ = self._groups[place]
                held = self._opened[file].read_row_group(group, columns=[name])[name]
                while len(self._held) >= _HELD:
                    del self._held[next(iter(self._held))]
                self._held[place, name] = held
        return held[at - int(self._ends[place])].as_py()


class _Images(Images):
    """The images of `columns`, row by row."""

    def __init__(self, table: _Table, columns: tuple[str, ...]) -> None:
        self._table, self._columns = table, columns

    def __len__(self) -> int:
        return len(self._table) * len(self._columns)

    def name(self, at: int) -> str:
        row, column = divmod(at, len(self._columns))
        return f"{self._table.name(row)}, column {self._columns[column]}"

    def read(self, at: int) -> bytes:
        row, column = divmod(at, len(self._columns))
        return _bytes(self._table.value(row, self._columns[column]), self.name(at))


class _Candidates(Images):
    """WinoGAViL's candidate images: lists in one column, row `r`'s at `ends[r]` to `ends[r + 1]`."""

    def __init__(self, table: _Table, ends: np.ndarray) -> None:
        self._table, self._ends = table, ends

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, at: int) -> str:
        row = int(np.searchsorted(self._ends, at, side="right")) - 1
        return f"{self._table.name(row)}, candidate {at - int(self._ends[row])}"

    def read(self, at: int) -> bytes:
        row = int(np.searchsorted(self._ends, at, side="right")) - 1
        images = self._table.value(row, "candidate_images")
        return _bytes(images[at - int(self._ends[row])], self.name(at))


def _bytes(value: Any, where: str) -> bytes:
    found = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise UserError("the row has no image bytes", where=where, do="Save the images in the table, not their paths")
    return found
