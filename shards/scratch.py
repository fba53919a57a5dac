"""Temporary files of one command: all in one folder in $TMPDIR, which is gone at its end however it ends.

Only `kill -9` leaves it there. It is then removed by the next command, which knows it for ours: by name and owner, and
by a claim inside that nobody holds any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from shards.errors import UserError

_PREFIX = "clipstill-"
_CLAIM = ".claim"
_GONE_WITHIN_S = 5.0


@contextlib.contextmanager
def command_scratch() -> Iterator[Path]:
    """A new folder that is $TMPDIR of this process, and of those it starts, for the length of the block.

    Raises `UserError` if none can be made.
    """
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    with scratch_in(_temporary()) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            _, tempfile.tempdir = before
            if before[0] is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before[0]


@contextlib.contextmanager
def scratch_in(root: Path) -> Iterator[Path]:
    """A new folder below `root` for the length of the block; what killed processes left there is removed first."""
    with contextlib.suppress(OSError):
        _sweep(root)
    folder, claim = _claimed(root)
    try:
        yield folder
    finally:
        # Who just ended may still be writing his last line.
        deadline = time.monotonic() + _GONE_WITHIN_S
        while folder.exists() and time.monotonic() < deadline:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)


def short_root(longest: int) -> Path:
    """Where a folder's path will have at most `longest` bytes: $TMPDIR if that allows it.

    Raises `UserError` if there is no such place.
    """
    usual = _temporary()
    for root in (usual, *map(Path, ("/tmp", "/var/tmp", "/dev/shm"))):
        fits = len(os.fsencode(root / f"{_PREFIX}12345678")) <= longest
        if fits and root.is_dir() and os.access(root, os.W_OK | os.X_OK):
            return root
    raise UserError(
        f"{str(usual)!r} is too long for Ray's sockets, and /tmp cannot be written",
        where="$TMPDIR",
        do="Set it to a short path, or use --in-process",
    )


def processes_of(folder: Path) -> set[int]:
    """The other processes whose output goes to a file below `folder`."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        for descriptor in ("1", "2"):
            with contextlib.suppress(OSError):
                if (entry / "fd" / descriptor).readlink().is_relative_to(folder):
                    found.add(int(entry.name))
    return found - {os.getpid()}


def end_processes_of(folder: Path, patience: float = 0.0) -> None:
    """Return once they are gone; those that are not after `patience` seconds are killed."""
    begun = time.monotonic()
    while (left := processes_of(folder)) and time.monotonic() - begun < patience + _GONE_WITHIN_S:
        if time.monotonic() - begun >= patience:
            for process in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.02)


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(f"no folder for temporary files can be written ({error.strerror})", do="Set $TMPDIR") from None


def _claimed(root: Path) -> tuple[Path, int]:
    """A new folder, and a descriptor that keeps it from being swept as long as this process lives."""
    try:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            claim = os.open(folder / _CLAIM, os.O_RDWR | os.O_CREAT, 0o600)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(claim, fcntl.LOCK_EX)
            if os.fstat(claim).st_nlink:
                return folder, claim
            os.close(claim)  # swept between its creation and the lock
    except OSError as error:
        raise UserError(
            f"no temporary folder can be made ({error.strerror})",
            where=str(root),
            do="Make room there, or set $TMPDIR to another disk",
        ) from None


def _sweep(root: Path) -> None:
    """Remove folders of ours whose processes are dead."""
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            claim = os.open(folder / _CLAIM, os.O_RDWR)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(claim)
