"""An export appears whole or not at all: it is written into a folder beside its destination, then renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import UserError
from shards.places import local_path, refuse_unwritable
from shards.storage import sync_to_disk

_TAKEN, _ANOTHER = "there is something already", "Name another folder or remove this one"


def refuse_taken(folder: str) -> None:
    """Raise `UserError` unless an export can be made at `folder`: on a local disk, nothing there, and writable."""
    target = local_path(folder, "an export's folder").absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(_TAKEN, where=folder, do=_ANOTHER)
    refuse_unwritable(target.parent)


def refuse_no_room(folder: str, size: int) -> None:
    """Raise `UserError` if the disk of an export's folder has less than `size` bytes left."""
    there = local_path(folder, "an export's folder").absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < size:
        problem = f"the export takes about {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are left on that disk"
        raise UserError(problem, where=folder, do="Make room there, or name a folder on another disk")


@contextmanager
def staged(folder: str) -> Iterator[Path]:
    """A sibling of `folder` that takes its name when the block ends without an exception, and vanishes otherwise.

    What killed exports to the same `folder` left is removed; what a living one is writing is left alone.
    Raises `UserError` if `folder` is on no local disk, holds something, before or after the block, or cannot be made.
    """
    refuse_taken(folder)
    target = local_path(folder, "an export's folder").absolute()
    try:
        staging, claim = _claimed(target)
    except OSError as error:
        raise UserError(f"no folder can be made there ({error.strerror})", where=folder, do="Check the path") from error
    try:
        _remove_leftovers(target)
        yield staging
        for path in (*staging.rglob("*"), staging):
            sync_to_disk(path)
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            # Another export was faster.
            raise UserError(_TAKEN, where=folder, do=_ANOTHER) from error
        sync_to_disk(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(claim)


def _claimed(target: Path) -> tuple[Path, int]:
    """A new folder beside `target`, and a descriptor that holds a lock on it until it is closed or the process ends."""
    while True:
        staging = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        staging.mkdir(parents=True)
        with suppress(FileNotFoundError):  # swept between its making and the lock, by another export
            claim = os.open(staging, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(claim, fcntl.LOCK_EX)
            if staging.exists():
                return staging, claim
            os.close(claim)


def _remove_leftovers(target: Path) -> None:
    made_here = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}\.tmp")
    for path in target.parent.iterdir():
        if made_here.fullmatch(path.name):
            _remove_unclaimed(path)


def _remove_unclaimed(path: Path) -> None:
    try:
        claim = os.open(path, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return
    try:
        with suppress(OSError):  # claimed; or a file system without locks, where nobody can tell
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(claim)
