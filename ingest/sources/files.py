"""The input files: found by path, glob, folder or URL, opened with their compression undone, described by hash."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from ingest.formats import KINDS
from ingest.sources.mistaken import refuse_folder
from shards import UserError
from shards.credentials import are_in
from shards.dataset import InputFile
from shards.outages import ride_out
from shards.ranges import open_file
from shards.stores import is_of_library, located, told

_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def kind_of(path: str) -> str | None:
    """The kind of file that an ending stands for, a compression's ending left aside; None if it stands for none."""
    name = path.rsplit("/", 1)[-1].lower()
    for ending in _CODECS:
        name = name.removesuffix(ending)
    return next((kind for kind, facts in KINDS.items() if name.endswith(facts.endings) and facts.endings), None)


def find_inputs(paths: Sequence[str], belongs: Callable[[str], bool], *, packing: bool = False) -> list[str]:
    """The input files that `paths` name: globs expanded and sorted, of folders every file that `belongs`, sorted.

    In folders, what begins with "." or "_" is left aside. `packing`: they are lists of files, not of URLs. Raises
    `UserError` for a path that names no file.
    """
    found: list[str] = []
    for path in paths:
        with explained(path):
            fs, plain = located(path)
            kind = _kind(fs, plain)
            if kind == "file":
                matches = [plain]
            elif kind == "directory":
                files = [file for file in sorted(fs.find(plain)) if _is_data(file, plain)]
                matches = [file for file in files if belongs(file)]
                refuse_folder(path, [file.removeprefix(plain) for file in files], matches, packing=packing)
            elif kind is not None:
                raise UserError("this is no file: it can be read only once", where=path, do="Write it to a file first")
            else:
                matches = sorted(fs.glob(plain)) if any(sign in plain for sign in "*?[") else []
                matches = [match for match in matches if fs.isfile(match)]
        if not matches:
            raise UserError("no such input file", where=path, do="Check the path and --format")
        found += [fs.unstrip_protocol(match) for match in matches]
    return found


def _kind(fs: Any, path: str) -> str | None:
    """What `path` is ("file", "directory" or "other"), None if there is no such thing."""
    try:
        kind: str = fs.info(path)["type"]
    except FileNotFoundError as error:
        # Over HTTP whatever goes wrong is called so. What it was stands behind it.
        cause = error.__cause__
        is_absent = getattr(cause, "status", None) in {404, 410}
        if path.startswith("http") and cause is not None and is_of_library(cause) and not is_absent:
            raise cause from None
        return None
    return kind


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what goes wrong in getting at a file, on disk or on a store, into a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = told(error)
        if known is None:
            raise
        raise UserError(known[0], where=path, do=known[1]) from None


def _is_data(file: str, folder: str) -> bool:
    below = file.removeprefix(folder.rstrip("/")).strip("/").split("/")
    return not any(part.startswith((".", "_")) for part in below)


def look_at_input(path: str) -> InputFile:
    """An input file as its store describes it; nothing is read. Raises `UserError` if it cannot be looked at."""
    with explained(path):
        fs, plain = located(path)
        info = ride_out(path, lambda: fs.info(plain))
    marks = (info.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated"))
    modified = next((mark if isinstance(mark, int | float) else str(mark) for mark in marks if mark), None)
    name = path.rsplit("/", 1)[-1]
    # What signs a request is no part of its name, and another one tomorrow.
    name = name.partition("?")[0] if are_in(path) else name
    return InputFile(name, info.get("size"), modified)


def hash_input(path: str, stop: threading.Event, most: int | None = None) -> tuple[int, str]:
    """The number of bytes of an input file and their SHA-256: of all, or of the first `most`, or of some once `stop` is
    set. Raises `UserError` if it cannot be read.
    """
    digest = hashlib.sha256()
    size = 0
    with explained(path), open_file(path) as file:
        while not stop.is_set():
            block = file.read(1 << 20 if most is None else min(1 << 20, most - size))
            if not block:
                break
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


_READING: dict[str, pa.NativeFile] = {}


def read_so_far(path: str) -> int:
    """How many bytes into a file its reader is; 0 if none is at it."""
    file = _READING.get(path)
    # Whoever reads it may close it meanwhile.
    with suppress(pa.ArrowException, ValueError, OSError):
        return 0 if file is None or file.closed else int(file.tell())
    return 0


@contextmanager
def open_raw(path: str) -> Iterator[pa.NativeFile]:
    """A file as its bytes are."""
    fs, plain = located(path)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        with pa.OSFile(plain) as local, _noted(path, local):
            yield local
    else:
        with open_file(path) as remote, pa.PythonFile(remote, "r") as wrapped, _noted(path, wrapped):
            yield wrapped


def head_of(path: str) -> bytes:
    """The first bytes of a file as they are, enough to know its kind."""
    with open_file(path) as file:
        head: bytes = file.read(512)
    return head


@contextmanager
def _noted(path: str, file: pa.NativeFile) -> Iterator[None]:
    _READING[path] = file
    try:
        yield
    finally:
        _READING.pop(path, None)


@contextmanager
def open_text(path: str) -> Iterator[pa.NativeFile]:
    """A file's bytes, decompressed if its name ends in .gz, .bz2 or .zst."""
    codec = next((codec for ending, codec in _CODECS.items() if path.lower().endswith(ending)), None)
    with open_raw(path) as raw:
        if codec is None:
            yield raw
        else:
            with pa.CompressedInputStream(raw, codec) as plain:
                yield plain
