"""A folder of pictures as a list: captions from files beside them, classes from the folders they are in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.sources.files import kind_of
from shards import Folder, UserError

LIST = "_list.parquet"
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"})
_CAPTION = ".txt"


def pictures_below(folders: Sequence[str]) -> list[Path]:
    """The pictures in local folders and in those below, by their names' endings: sorted within each, hidden ones left
    out.
    """
    found: list[Path] = []
    for folder in folders:
        root = Path(folder)
        paths = (path for path in sorted(root.rglob("*")) if path.suffix.lower() in _PICTURES)
        found += [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    return found


def are_folders_of_pictures(paths: Sequence[str]) -> bool:
    """Whether all of these are local folders with pictures in them, and no lists but what may be captions."""
    folders = [Path(path) for path in paths if "://" not in path]
    if len(folders) < len(paths) or not all(folder.is_dir() for folder in folders):
        return False
    kinds = {kind_of(path.name) for folder in folders for path in folder.iterdir() if path.is_file()}
    return kinds <= {None, "txt"} and bool(pictures_below(paths))


def write_list(folders: Sequence[str], out: Folder) -> tuple[str, bool, bool]:
    """List the pictures in `out`'s `_list.parquet`: `filepath`, `caption`, `class`, `label`; its path, whether any has
    a caption, and whether they have classes.

    `caption` has the bytes of `NAME.txt` beside `NAME.jpg`, null if there is none (what is no text is its row's
    fault, as in any list); `class` the name of the folder that
    a picture is in, and `label` its number among all in order, where every picture is in a folder below the given one.

    Raises `UserError` if there is no picture.
    """
    paths = pictures_below(folders)
    if not paths:
        raise UserError("no picture is there", where=", ".join(folders), do="Check the path")
    captions = [_caption_of(path) for path in paths]
    roots = {Path(folder).absolute() for folder in folders}
    inside = all(path.absolute().parent not in roots for path in paths)
    classes = [path.parent.name if inside else None for path in paths]
    numbers = {name: number for number, name in enumerate(sorted({name for name in classes if name is not None}))}
    table = pa.table(
        {
            "filepath": pa.array([str(path.absolute()) for path in paths], pa.string()),
            "caption": pa.array(captions, pa.binary()),
            "class": pa.array(classes, pa.string()),
            "label": pa.array([None if name is None else numbers[name] for name in classes], pa.int64()),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    out.publish(LIST, sink.getvalue())
    return f"{out}/{LIST}", any(captions), bool(numbers)


def _caption_of(path: Path) -> bytes | None:
    try:
        return path.with_suffix(_CAPTION).read_bytes().strip()
    except FileNotFoundError:
        return None
