"""A folder of pictures as a list: captions from files beside them, classes from the folders they are in."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.sources.files import kind_of
from pictures.kind import ENDINGS
from shards import Folder, UserError

LIST = "_list.parquet"
_CAPTION = ".txt"


def pictures_below(folders: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The pictures in local folders and in those below, by their names' endings, and the other files but the pictures'
    captions: sorted within each folder, hidden ones left out.

    Raises `UserError` for a folder that cannot be listed.
    """
    found: list[Path] = []
    others: list[Path] = []
    for folder in folders:
        files = sorted(_files_below(Path(folder)))
        pictures = list(filter(_is_picture, files))
        known = {*pictures, *(path.with_suffix(_CAPTION) for path in pictures)}
        found += pictures
        others += [path for path in files if path not in known]
    return found, others


def _files_below(root: Path) -> Iterator[Path]:
    """What is in a folder and in those below, links to folders followed unless they lead back to where one came by."""

    def refuse(error: OSError) -> NoReturn:
        problem = f"this folder cannot be listed ({error.strerror})"
        raise UserError(problem, where=str(error.filename), do="Check the path and its permissions")

    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        here = Path(folder)
        below[:] = [name for name in below if not name.startswith(".") and not _leads_back(here / name, root)]
        yield from (here / name for name in names if not name.startswith("."))


def _leads_back(path: Path, root: Path) -> bool:
    if not path.is_symlink():
        return False
    way = (folder.resolve() for folder in path.parents if folder.is_relative_to(root))
    return any(folder.is_relative_to(path.resolve()) for folder in way)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def are_folders_of_pictures(paths: Sequence[str]) -> bool:
    """Whether all of these are local folders with pictures in them, and no lists but what may be captions."""
    folders = [Path(path) for path in paths if "://" not in path]
    if len(folders) < len(paths) or not all(folder.is_dir() for folder in folders):
        return False
    kinds = {kind_of(path.name) for folder in folders for path in folder.iterdir() if path.is_file()}
    return kinds <= {None, "txt"} and any(map(_is_picture, chain.from_iterable(map(_files_below, folders))))


def write_list(folders: Sequence[str], out: Folder) -> tuple[str, bool, bool, list[Path]]:
    """List the pictures in `out`'s `_list.parquet`: `filepath`, `caption`, `class`, `label`; its path, whether any has
    a caption, whether they have classes, and which files were left out.

    A `filepath` that is no text has U+FFFD for what is none, so that its row fails; `caption` has the bytes of
    `NAME.txt` beside `NAME.jpg`, null if there is none (what is no text is its row's fault, as in any list); `class`
    the name of the folder that a picture is in, and `label` its number among all in order, where every picture is in a
    folder below the given one.

    Raises `UserError` if there is no picture, or a folder cannot be listed.
    """
    paths, others = pictures_below(folders)
    if not paths:
        raise UserError("no picture is there", where=", ".join(folders), do="Check the path")
    captions = [_caption_of(path) for path in paths]
    roots = {Path(folder).absolute() for folder in folders}
    inside = all(path.absolute().parent not in roots for path in paths)
    classes = [_text(path.parent.name) if inside else None for path in paths]
    numbers = {name: number for number, name in enumerate(sorted({name for name in classes if name is not None}))}
    table = pa.table(
        {
            "filepath": pa.array([_text(str(path.absolute())) for path in paths], pa.string()),
            "caption": pa.array(captions, pa.binary()),
            "class": pa.array(classes, pa.string()),
            "label": pa.array([None if name is None else numbers[name] for name in classes], pa.int64()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    out.publish(LIST, sink.getvalue())
    return f"{out}/{LIST}", any(captions), bool(numbers), others


def _text(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")


def _caption_of(path: Path) -> bytes | None:
    try:
        return path.with_suffix(_CAPTION).read_bytes().strip()
    except FileNotFoundError:
        return None
