"""Refuse files that are no list (pictures, tars, datasets, ledgers), and say what each of them is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from ingest.settings import SourceSettings
from pictures.kind import ENDINGS
from shards import UserError

_PICTURES = tuple(ENDINGS)
_TARS = (".tar", ".tar.gz", ".tgz")
_LIST = "Give a list of URLs"
_AGAIN = "to fetch again what failed, give its .parquet files with --where 'status != success'"
_OURS = {
    "log.jsonl": "a run of `clipstill distill`",
    "open_clip_config.json": "a model",
    "teacher.json": "a teacher cache",
    "layer.json": "a part of a teacher cache",
}
"""What folders of ours are, by files that no list is called."""
_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|II[*+]\0|MM\0[*+]|....ftyp(avif|heic|mif1)", re.DOTALL
)


def refuse_folder(path: str, files: Sequence[str], lists: Sequence[str], *, packing: bool) -> None:
    """Raise `UserError` if a folder's `files`, named from the folder on, are something else than lists, though `lists`
    may be among them. `packing`: lists of files are wanted, not of URLs.
    """
    names = [file.rsplit("/", 1)[-1] for file in files]
    tars = [name for name in names if name.lower().endswith(_TARS)]
    pictures = [name for name in names if name.lower().endswith(_PICTURES)]
    if "dataset.json" in names:
        do = f"`clipstill ingest retry {shlex.quote(path)}` fetches again what failed"
        if packing:
            do = "Every later command takes it as it is; `clipstill shards materialize` cuts its shards anew"
        raise UserError("this is a dataset that clipstill made, not a list", where=path, do=do)
    if any(name.endswith("_stats.json") for name in names):
        do = f"Give the list that they were made from, or {_AGAIN}"
        raise UserError(
            f"these are shards that img2dataset made ({len(tars)} tars with their ledgers), not lists",
            where=path,
            do=_adopt(path) if packing else do,
        )
    for file, name in zip(files, names, strict=True):
        holder = file.removesuffix(name)
        if name in _OURS and (name != "log.jsonl" or f"{holder}settings.json" in files):
            where = f"{path.rstrip('/')}/{holder.strip('/')}".rstrip("/")
            raise UserError(f"this is {_OURS[name]}, not a list", where=where, do=_wanted(packing=packing))
    if lists:
        return
    if tars:
        raise UserError(
            f"{len(tars)} tars and no list: these are shards already, made or not", where=path, do=_adopt(path)
        )
    if pictures and packing:
        problem = f"{len(pictures)} pictures ({pictures[0]} ...) and no list: only local folders of pictures are packed"
        raise UserError(problem, where=path, do="Give a list with a column of their paths or URLs there")
    if pictures:
        problem = f"{len(pictures)} pictures ({pictures[0]} ...) and no list: only what has a URL can be fetched"
        raise UserError(problem, where=path, do=f"`clipstill shards pack {shlex.quote(path)}` makes shards of them")
    if not files:
        raise UserError("this folder is empty", where=path, do=_wanted(packing=packing))
    shown = f"{', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''}"
    problem = f"no list of the kind that is wanted is in this folder: {shown}"
    raise UserError(problem, where=path, do="Check --format, or name the files")


def refuse_file(path: str, *, packing: bool) -> None:
    """Raise `UserError` if the ending of a file's name says that it is no list."""
    name = path.lower()
    if name.endswith(_TARS):
        raise UserError("this is a tar, not a list", where=path, do=_adopt(path))
    if name.endswith(_PICTURES):
        raise UserError("this is a picture, not a list", where=path, do=_wanted(packing=packing))


def refuse_content(path: str, head: bytes, kind: str, *, packing: bool) -> None:
    """Raise `UserError` if the first bytes of a file, which is called `kind`, are those of something else."""
    if _PICTURE.match(head):
        raise UserError("this is a picture, not a list", where=path, do=_wanted(packing=packing))
    if head[257:262] == b"ustar":
        raise UserError("this is a tar, not a list", where=path, do=_adopt(path))
    if head.startswith(b"PK\3\4"):
        do = "Unpack it, or export the table in it as CSV"
        raise UserError("this is a zip archive, as spreadsheets are too, not a list", where=path, do=do)
    if head.startswith(b"PAR1") and kind != "parquet":
        raise UserError(f"this is Parquet, not {kind}", where=path, do="Give --format parquet")


def _wanted(*, packing: bool) -> str:
    return "Give a list of files, or a folder of pictures" if packing else _LIST


def _adopt(path: str) -> str:
    return f"`clipstill shards adopt {shlex.quote(path.removeprefix('file://'))} --out DATASET` makes a dataset of it"


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
