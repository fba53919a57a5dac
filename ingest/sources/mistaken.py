"""Refuse files that are no list (pictures, tars, datasets, ledgers), and say what each of them is."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.settings import SourceSettings
from shards import UserError

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic")
_TARS = (".tar", ".tar.gz", ".tgz")
_LIST = "Give a list of URLs"
_AGAIN = "to fetch again what failed, give its .parquet files with --where 'status != success'"


def refuse_folder(path: str, files: Sequence[str], lists: Sequence[str]) -> None:
    """Raise `UserError` if a folder's `files` are something else than lists, though `lists` may be among them."""
    names = [file.rsplit("/", 1)[-1] for file in files]
    tars = [name for name in names if name.lower().endswith(_TARS)]
    pictures = [name for name in names if name.lower().endswith(_PICTURES)]
    if "dataset.json" in names:
        do = f"`clipstill ingest retry {path}` fetches again what failed"
        raise UserError("this is a dataset that clipstill made, not a list", where=path, do=do)
    if any(name.endswith("_stats.json") for name in names):
        raise UserError(
            f"these are shards that img2dataset made ({len(tars)} tars with their ledgers), not lists",
            where=path,
            do=f"Give the list that they were made from, or {_AGAIN}",
        )
    if lists:
        return
    if tars:
        raise UserError(f"{len(tars)} tars and no list: these are shards already, made or not", where=path, do=_LIST)
    if pictures:
        problem = f"{len(pictures)} pictures ({pictures[0]} ...) and no list: only what has a URL can be fetched"
        raise UserError(problem, where=path, do=_LIST)


def refuse_file(path: str) -> None:
    """Raise `UserError` if the ending of a file's name says that it is no list."""
    name = path.lower()
    if name.endswith(_TARS):
        raise UserError("this is a tar, not a list", where=path, do=_LIST)
    if name.endswith(_PICTURES):
        raise UserError("this is a picture, not a list", where=path, do=_LIST)


def refuse_ledger(path: str, columns: Sequence[str], source: SourceSettings) -> None:
    """Raise `UserError` for a ledger of a download, unless a condition says which of its rows are to be fetched."""
    if source.format not in {"auto", "parquet"} or not {"key", "url", "status", "error_message"} <= set(columns):
        return
    if any("status" in condition or "error" in condition for condition in source.where):
        return
    raise UserError(
        "this is a ledger of what became of each row of a list, not a list",
        where=path,
        do=f"Give the list; {_AGAIN}",
    )
