"""Errors of the machine (a full disk, permissions, no network), whichever library raised them: a line with advice."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from shards.errors import UserError

_AGAIN = "then run the same command again"
_ADVICE = {
    errno.ENOSPC: ("the disk is full", f"Make room there and in $TMPDIR, {_AGAIN}"),
    errno.EDQUOT: ("the disk quota is used up", f"Make room there and in $TMPDIR, {_AGAIN}"),
    errno.EFBIG: ("the file would be larger than is allowed", f"Raise `ulimit -f`, {_AGAIN}"),
    errno.EACCES: ("permission denied", "Check its permissions, or give another path"),
    errno.EPERM: ("not permitted", "Check its permissions, or give another path"),
    errno.EROFS: ("the file system is read-only", "Give a path that can be written"),
    errno.ENAMETOOLONG: ("the name is too long", "Give a shorter path"),
    errno.EMFILE: ("too many files are open in this process", f"Raise `ulimit -n`, {_AGAIN}"),
    errno.ENFILE: ("too many files are open on this machine", f"Close some, {_AGAIN}"),
    errno.ENOMEM: ("memory is short", f"Free some, {_AGAIN}"),
    errno.EIO: ("the disk fails to read or write", f"Look into the system's log, and check the disk, {_AGAIN}"),
    errno.ESTALE: ("the file has gone from the server", f"Mount the file system again, {_AGAIN}"),
}
_MEMORY = "Use smaller batches (--batch-size, or --micro-batches of a training), or fewer --workers"
_RUST = re.compile(r"(?:Os \{ code: |os error )(\d+)")
"""How libraries written in Rust (safetensors, tokenizers) put the system's number into their text."""


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Errors of the system that name no file, as those of a write do, name `where`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or where
        raise


def machines_refusal(error: BaseException) -> UserError | None:
    """The line for an error that the machine is the cause of (disk, permissions, memory); None for any other.

    The cause is looked for in what was raised `from` it too. An error that is only one's context does not count.
    """
    link: BaseException | None = error
    while link is not None:
        found = _refusal(link)
        if found is not None:
            return found
        link = link.__cause__
    return None


def _refusal(error: BaseException) -> UserError | None:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in text:
        return UserError(f"memory is short ({text or kind})", do=_MEMORY)
    if isinstance(error, OSError):
        where = error.filename2 or error.filename
        at = os.fsdecode(where) if isinstance(where, str | bytes) else ""
        if error.errno in _ADVICE:
            problem, do = _ADVICE[error.errno]
            return UserError(problem, where=at, do=do) if at else UserError(f"{problem} ({text})", do=do)
        return UserError(f"cannot be used ({error.strerror or text or kind})", where=at, do="Check the path")
    if kind == "SafetensorError" or "os error" in text:
        number = _RUST.search(text)
        if number is not None and int(number[1]) in _ADVICE:
            problem, do = _ADVICE[int(number[1])]
            return UserError(f"{problem} ({text})", do=do)
    if "PytorchStreamWriter" in text or "inline_container" in text:
        # It counts what it could not write and does not say why.
        return UserError("a file could not be written: the disk is full, or fails", do=_ADVICE[errno.ENOSPC][1])
    return _no_text(error)


def _no_text(error: BaseException) -> UserError | None:
    """For a name or an argument with bytes that are not of the locale's encoding, where text had to be written."""
    if not isinstance(error, UnicodeEncodeError) or "surrogates" not in error.reason:
        return None
    problem = f"a name that is not UTF-8 text: {error.object[:300]!r}"
    return UserError(problem, do="Rename it; if it looks right elsewhere, set LANG=C.UTF-8")
