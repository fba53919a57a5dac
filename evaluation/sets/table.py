"""Parquet as the hub has it: an image and a list of captions (Flickr, COCO), Winoground, WinoGAViL.

The Arrow files that the `datasets` library keeps in its cache are read too: DataComp's download leaves these sets so.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
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
_OF_SPLIT = re.compile(r"(?:^|-)(test|val|train)[\w-]*\.(?:parquet|arrow)", re.IGNORECASE)
_CACHED = "dataset_info.json"
"""Lies beside the Arrow files of the `datasets` library."""


def fits(place: Place) -> bool:
    if place.file is not None:
        return place.file.endswith(".parquet")
    if place.files & {"dataset.json"}:
        return False
    return bool(tables(place.files)) or ("data" in place.folders and bool(tables(place.tree.child("data").listed()[1])))


def tables(files: frozenset[str]) -> list[str]:
    """Those of the files in a folder that hold rows, in their order."""
    endings = (".parquet", ".arrow") if _CACHED in files else (".parquet",)
    return sorted(name for name in files if name.endswith(endings))


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:
    tree, files = place.tree, [place.file] if place.file else tables(place.files)
    if not files:
        tree = tree.child("data")
        files = _split(tables(tree.listed()[1]), str(tree))
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
    """Of files named by their split (`test-00000-of-00001.parquet`, `NAME-test.arrow`) those to test on."""
    of = {name: found[1].lower() for name in files if (found := _OF_SPLIT.search(name))}
    named = {split: [name for name in files if of.get(name) == split] for split in ("test", "val", "train")}
    if not any(named.values()):
        return files
    for split in ("test", "val"):
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
        if not any(caption.strip() for caption in said):
            raise UserError("the image has no caption", where=table.name(at), do="Leave such rows out")
        captions += said
        image_of += [at] * len(said)
    task: Task = retrieval(captions, image_of, first=settings.protocol == "clip-kd")
    return EvaluationSet(name, images, {"retrieval": task})


def _winoground(table: _Table) -> EvaluationSet:
    said = [table.refuse_none(name, table.column(name), str) for name in FIELDS[2:]]
    captions = tuple(zip(*said, strict=True))
    places = np.arange(2 * len(table), dtype=np.int64).reshape(-1, 2)
    return EvaluationSet("winoground", _Images(table, FIELDS[:2]), {"winoground": Matching(places, captions)})


def _winogavil(table: _Table) -> EvaluationSet:
    """Images are each row's candidates, one row after the other."""
    candidates, right = (table.refuse_none(name, table.column(name), list) for name in _WINOGAVIL[1:3])
    cues = table.refuse_none("cue", table.column("cue"), str)
    ends = np.cumsum([0] + [len(row) for row in candidates])
    places = tuple(np.arange(start, end) for start, end in pairwise(ends))
    hits = tuple(np.isin(row, known) for row, known in zip(candidates, right, strict=True))
    task = Association(tuple(cues), places, hits)
    return EvaluationSet("misc-winogavil", _Candidates(table, ends), {"winogavil": task})


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(at).name == "bytes" for at in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    """Texts or lists of them, also as categories (pandas) and as lists of one length."""
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    inner = kind.value_type if any(is_one(kind) for is_one in lists) else kind
    inner = inner.value_type if types.is_dictionary(inner) else inner
    return bool(types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner))


class _Parquet:
    """A file's rows by group; `sizes` of these."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self.sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def column(self, group: int, name: str) -> Any:
        return self._file.read_row_group(group, columns=[name])[name]


class _Arrow:
    """As `_Parquet`, of an Arrow stream, mapped."""

    def __init__(self, path: Path) -> None:
        self._batches = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().to_batches()
        self.schema = self._batches[0].schema if self._batches else pa.schema([])
        self.sizes = [batch.num_rows for batch in self._batches]

    def column(self, group: int, name: str) -> Any:
        return self._batches[group].column(name)


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError("there is no such file", where=where, do="Check the path") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        told = one_line(str(error))
        raise UserError(f"not readable as Parquet or Arrow ({told})", where=where, do="Fetch it again") from None


class _Table:
    """Rows of several files, a row group at a time."""

    def __init__(self, tree: Tree, files: list[str]) -> None:
        self.tree, self._files = tree, files
        self._opened: list[_Parquet | _Arrow] = []
        for name in files:
            with _readable(f"{tree}/{name}"):
                path = tree.local(name)
                self._opened.append(_Arrow(path) if name.endswith(".arrow") else _Parquet(path))
        self.schema = self._opened[0].schema if self._opened else pa.schema([])
        self._groups = [
            (file, group, size) for file, opened in enumerate(self._opened) for group, size in enumerate(opened.sizes)
        ]
        self._ends = np.cumsum([0] + [rows for _, _, rows in self._groups])
        self._turn, self._held = threading.Lock(), dict[tuple[int, str], pa.ChunkedArray]()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, at: int) -> str:
        """The file, and the row in it."""
        place = int(np.searchsorted(self._ends, at, side="right")) - 1
        file = self._groups[place][0]
        before = sum(sum(opened.sizes) for opened in self._opened[:file])
        return f"{self.tree}/{self._files[file]}, row {at - before}"

    def column(self, name: str) -> list[Any]:
        found: list[Any] = []
        for file, group, _ in self._groups:
            with _readable(f"{self.tree}/{self._files[file]}"):
                found += self._opened[file].column(group, name).to_pylist()
        return found

    def refuse_none(self, name: str, values: list[Any], kind: type) -> list[Any]:
        """`values` of a column, or `UserError` for one that is of another kind."""
        for at, value in enumerate(values):
            if not isinstance(value, kind):
                raise UserError(f"its {name} is {value!r}", where=self.name(at), do="Fetch the set again")
        return values

    def value(self, at: int, name: str) -> Any:
        place = int(np.searchsorted(self._ends, at, side="right")) - 1
        with self._turn:
            held = self._held.get((place, name))
            if held is None:
                file, group, _ = self._groups[place]
                with _readable(f"{self.tree}/{self._files[file]}"):
                    held = self._opened[file].column(group, name)
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
        return _bytes(self._table.value(row, self._columns[column]), self._table.tree, self.name(at))


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
        images = self._table.value(row, "candidate_images") or []
        place = at - int(self._ends[row])
        return _bytes(images[place] if place < len(images) else None, self._table.tree, self.name(at))


def _bytes(value: Any, tree: Tree, where: str) -> bytes:
    """The bytes in a cell, or in the file that it names: the `datasets` library keeps what it unpacked as files."""
    found, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if isinstance(found, bytes):
        return found
    if isinstance(path, str) and tree.is_local:
        try:
            return (Path(tree.url) / path).read_bytes()
        except OSError as error:
            raise UserError(
                f"there are no image bytes, and the file {path} cannot be read ({error.strerror})",
                where=where,
                do="Fetch the set again, where it is to stay",
            ) from None
    raise UserError("the row has no image bytes", where=where, do="Save the images in the table, not their paths")
