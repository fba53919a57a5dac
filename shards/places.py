"""Check a path before any work: is it what a command takes, and would the output overwrite something?"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from shards.errors import UserError
from shards.storage import Folder

_LEAVINGS = {"lost+found"}
"""What a file system itself puts into an empty folder; hidden names are its own or nobody's, too."""


def what_is_at(folder: Folder) -> str:
    """A few words for what this path holds, by the names in it, and which command takes it where one does."""
    if folder.is_local and folder.path.is_file():
        of = "; a dataset is the whole folder that `clipstill ingest` wrote" if folder.path.suffix == ".tar" else ""
        return f"a file, not a folder{of}"
    names = folder.names()
    if not names:
        return "an empty folder" if folder.is_local and folder.path.is_dir() else "nothing: there is no such folder"
    tars = sum(name.endswith(".tar") for name in names)
    by = "img2dataset" if any(name.endswith("_stats.json") for name in names) else "another program"
    known = {
        "dataset.json": "a dataset of shards, made by `clipstill ingest`",
        "settings.json": f"a run of `clipstill distill`; its model is {folder}/model",
        "log.jsonl": "a run of `clipstill distill` that has lost its settings.json",
        "open_clip_config.json": "a model's folder, for `clipstill evaluate` and `export`",
        "teacher.json": "one teacher's part of a cache; the cache is the folder above it",
        "layer.json": "one layer of a cache; the cache is two folders above it",
        "_plan": "a dataset whose planning was interrupted: the same `clipstill ingest` command goes on",
        "_facts": "a selection that was not finished: the same `clipstill shards filter` command goes on",
        "_records": f"{tars} shards that have lost their dataset.json: restore it",
    }
    found = [words for name, words in known.items() if name in names]
    if tars:
        found.append(
            f"{tars} tars of {by}, without dataset.json, indexes and records as `clipstill ingest` writes them"
        )
    # Of many names, the first few: each is a look at a disk or a store.
    if not found and any(folder.child(name).exists("teacher.json") for name in names[:8] if "." not in name):
        found.append("a teacher cache, made by `clipstill cache build`")
    return [*found, f"a folder with {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"][0]


def which_command(folder: Folder) -> str:
    """What to do where a dataset was asked for and none is."""
    try:
        is_file = folder.is_local and folder.path.is_file()
        names = [folder.url] if is_file or "*" in folder.url else folder.names()
        tars = any(name.endswith(".tar") for name in names)
    except OSError:
        tars = False
    if not tars:
        return "Give the folder that `clipstill ingest` or `clipstill shards adopt` wrote"
    return f"Make one of these tars, where they are: clipstill shards adopt {shlex.quote(folder.url)} --out DATASET"


def refuse_other_things(folder: Folder, what: str, ours: Collection[str]) -> None:
    """Raise `UserError` unless `folder` is free for a `what`: absent, empty, or with one of `ours` in it already.

    Also where it cannot be made or written: before the work, not after it.
    """
    if folder.is_local and folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"this is a file, and {what} is a folder", where=str(folder), do="Give another --out")
    there = set(folder.names()) - _LEAVINGS
    if there and (not there & set(ours) or "dataset.json" in there - set(ours)):
        raise UserError(
            f"no {what.partition(' ')[2]} can be made here: this is {what_is_at(folder)}",
            where=str(folder),
            do="Give a folder that is empty or not there yet",
        )
    if folder.is_local:
        refuse_unwritable(folder.path)


def refuse_unwritable(path: Path) -> None:
    """Raise `UserError` if a local folder, there or to be made, could not be written; nothing is made."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        do = "Give another name; if it looks right elsewhere, set LANG=C.UTF-8"
        raise UserError("this name is not UTF-8 text, and what is written here names it", where=str(path), do=do)
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"no folder can be made there: {there} is a file", where=str(path), do="Check the path")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{there} cannot be written", where=str(path), do="Check its permissions, or give another path")


def local_path(path: str, what: str) -> Path:
    """`path` with its home folder written out. Raises `UserError` if it is a URL, where only a local path will do."""
    if "://" in path:
        raise UserError(f"{what} must be on a local disk", where=path, do="Give a path")
    return Path(path) if not path.startswith("~") else Folder(path).path
