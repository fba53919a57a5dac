"""What is made of published files and takes long to make: kept under its hash beside the copies of files.

It is bounded and removed as those are, and made again where it is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from shards import copies
from shards.errors import UserError
from shards.storage import Folder


@contextlib.contextmanager
def derived(name: str, make: Callable[[Path], None]) -> Iterator[int]:
    """A descriptor of what `make` writes at the path that it is given; maps of it outlive the descriptor.

    `name` is a hash of all that decides it. Of several processes that want it one makes it and the others wait; what is
    interrupted leaves nothing. Where nothing can be kept it is made in `$TMPDIR`, for this once.
    """
    try:
        folder = Folder(copies.root())
        folder.path.mkdir(parents=True, exist_ok=True)
        kept = os.access(folder.path, os.W_OK)
    except (UserError, OSError):  # no home folder, or one that cannot be written
        kept = False
    if not kept:
        with tempfile.TemporaryDirectory(prefix="clipstill-") as scratch:
            make(Path(scratch) / name)
            descriptor = os.open(Path(scratch) / name, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        return
    path, turn = folder.path / name, folder.path / f".{name}.turn"
    while (held := copies.use(path)) is None:
        waiting = os.open(turn, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(waiting, fcntl.LOCK_EX)
            if not path.exists():
                folder.sweep()
                with folder.staged(name) as unfinished:
                    make(unfinished)
        finally:
            turn.unlink(missing_ok=True)
            os.close(waiting)
    try:
        copies.make_room()
        yield held
    finally:
        os.close(held)
