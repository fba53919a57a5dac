"""Local copies of files on an object store, named by their hash. Their total size is bounded: the copy that was used
longest ago is removed first.

A copy in use is never removed. Whoever opens one holds a shared lock on it, and every memory map made of the descriptor
keeps that lock as long as it lives. Only a copy that can be locked exclusively is removed. All processes of a machine
may share one folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections import deque
from pathlib import Path

from shards.errors import UserError

_RECENT = 4
"""A path that was handed out stays good until so many others were, in the same process."""


def root() -> Path:
    """`$CLIPSTILL_CACHE`, `~/.cache/clipstill` unless set."""
    try:
        return Path(os.environ.get("CLIPSTILL_CACHE") or Path.home() / ".cache" / "clipstill")
    except RuntimeError:
        raise UserError("this user has no home folder for copies", do="Set $CLIPSTILL_CACHE to a folder") from None


def limit() -> int:
    """Bytes that all copies may take: `$CLIPSTILL_CACHE_BYTES` (`200e9`), half of the disk unless set.

    Raises `UserError` if that is no positive number.
    """
    text = os.environ.get("CLIPSTILL_CACHE_BYTES")
    if not text:
        return shutil.disk_usage(root()).total // 2
    with contextlib.suppress(ValueError, OverflowError):
        if (wanted := int(float(text))) > 0:
            return wanted
    raise UserError(f"{text!r} is no number of bytes", where="$CLIPSTILL_CACHE_BYTES", do="Set it to one, as in 200e9")


def use(path: Path) -> int | None:
    """A descriptor of a copy, which cannot be removed until it and all maps of it are closed; None if it is gone."""
    try:
        held = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(held, fcntl.LOCK_SH)
    if os.fstat(held).st_nlink == 0:
        os.close(held)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return held


def make_room() -> None:
    """Remove copies, those used longest ago first, until the others are within the bound."""
    most, found = limit(), []
    for entry in os.scandir(root()):
        with contextlib.suppress(FileNotFoundError):
            if not entry.name.startswith("."):
                found.append((entry.stat().st_mtime_ns, entry.path, entry.stat().st_size))
    total = sum(size for _, _, size in found)
    for _, path, size in sorted(found):
        if total <= most:
            return
        if _remove_unused(path):
            total -= size


def _remove_unused(path: str) -> bool:
    try:
        held = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        Path(path).unlink(missing_ok=True)
        return True
    finally:
        os.close(held)


class _Recent:
    """What was handed out by path last: kept from being removed before it can be opened."""

    def __init__(self) -> None:
        self._held: deque[int] = deque()
        self._lock = threading.Lock()

    def add(self, descriptor: int) -> None:
        with self._lock:
            self._held.append(descriptor)
            while len(self._held) > _RECENT:
                os.close(self._held.popleft())


recent = _Recent()
