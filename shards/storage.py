"""Folders on a local disk or an object store, with atomic publishing.

A file appears under its final name only when its bytes are complete: locally temp + fsync + rename, on an object
store one put of a finished object. Streaming into the final name is not offered: an exception inside
`with fs.open(path, "wb")` publishes the half file, locally and on s3fs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from shards import copies, credentials, lease, outages
from shards.causes import named
from shards.errors import UserError
from shards.lease import leased
from shards.listing import entries
from shards.outages import ride_out
from shards.ranges import read_file, read_start, short_read
from shards.stores import CREDENTIALS, ShortReadError, came_wrong, is_passing, located, seconds_of

log = logging.getLogger(__name__)

_SMALL = 1 << 20


class Folder:
    """A folder by its URL (`/data/cc3m`, `s3://bucket/cc3m`); holds no connection, so it can cross processes.

    Raises `UserError` where the path, bucket or credentials are wrong, or are part of the URL; other I/O errors pass
    through as `OSError` and count as transient. An outage of a store that has answered before is waited for.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        self.url = text if "://" in text else _absolute(text)
        if "://" in text and credentials.are_in(text):
            raise UserError(
                "credentials in a URL would stand in records and pages",
                where=text,
                do="Give them by the environment, or by the store's own configuration file",
            )

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "answered": outages.has_answered(self.url), "lease": lease.over(self.url)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.url = state["url"]
        if state["answered"]:
            outages.remember(self.url)
        if state["lease"]:
            lease.remember(state["lease"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def child(self, *names: str) -> Folder:
        """The folder below this one."""
        return Folder("/".join([self.url.rstrip("/"), *names]))

    @cached_property
    def _located(self) -> tuple[Any, str]:
        if "://" not in self.url:
            return LocalFileSystem(), self.url
        if "::" in self.url:
            raise UserError(
                "storages behind each other (::) are not read", where=self.url, do="Give one URL, or a path"
            )
        return located(self.url)

    @property
    def is_local(self) -> bool:
        return isinstance(self._located[0], LocalFileSystem)

    @property
    def path(self) -> Path:
        """The local path; only for local folders."""
        assert self.is_local, self.url
        return Path(self._located[1])

    def _name(self, name: str) -> str:
        return f"{self._located[1].rstrip('/')}/{name}"

    def names(self, prefix: str = "") -> list[str]:
        """The names directly here that begin with `prefix`, sorted, hidden ones left out; empty if absent.

        A local folder is listed by its names alone, for fsspec looks at every file: under 1 µs for each that is there.
        On an object store a prefix is resolved by the store, so it costs one small request however many files; some
        then find files only, no folders.
        """
        _, path = self._located
        with _explained(self.url, absent_is_error=False):
            try:
                if self.is_local:
                    found = os.listdir(path)  # noqa: PTH208  pathlib would make an object of each
                else:
                    found = [entry.name for entry in entries(*self._located, self.url, prefix)]
            except FileNotFoundError:
                return []
            return sorted(name for name in found if name.startswith(prefix) and not name.startswith("."))

    def sizes(self) -> dict[str, int]:
        """Name → size in bytes of every file directly here, hidden ones left out, from one listing; empty if absent."""
        fs, path = self._located
        with _explained(self.url, absent_is_error=False):
            try:
                if self.is_local:
                    with os.scandir(path) as there:
                        found = {entry.name: entry.stat().st_size for entry in there if entry.is_file()}
                else:
                    found = {entry.name: entry.size for entry in entries(fs, path, self.url) if entry.is_file}
            except FileNotFoundError:
                return {}
            return {name: size for name, size in found.items() if not name.startswith(".")}

    def times(self) -> dict[str, float]:
        """Name → when each file directly here was written, in seconds since 1970 by the storage's clock, from one
        listing; without those of which the storage does not say. Empty if absent.
        """
        fs, path = self._located
        with _explained(self.url, absent_is_error=False):
            try:
                if self.is_local:
                    with os.scandir(path) as there:
                        return {entry.name: entry.stat().st_mtime for entry in there}
                found = entries(fs, path, self.url)
            except FileNotFoundError:
                return {}
        return {entry.name: time for entry in found for time in seconds_of(entry.times)}

    def exists(self, name: str) -> bool:
        fs, _ = self._located
        with _explained(self.url):
            fs.invalidate_cache()
            return bool(ride_out(self.url, lambda: fs.exists(self._name(name))))

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises `FileNotFoundError` if it is absent."""
        with _explained(self.url, absent_is_error=False):
            if self.is_local:
                return Path(self._name(name)).read_bytes()
            return read_file(f"{self.url.rstrip('/')}/{name}")

    def read_small(self, name: str) -> bytes:
        """As `read`, by one request to a store instead of two; of what is larger than a MiB that much comes."""
        if self.is_local:
            return self.read(name)
        with _explained(self.url, absent_is_error=False):
            return read_start(f"{self.url.rstrip('/')}/{name}", _SMALL)

    def size(self, name: str) -> int | None:
        """The size of a file in bytes, None if it is absent."""
        fs, _ = self._located
        with _explained(self.url, absent_is_error=False):
            fs.invalidate_cache()
            try:
                return int(ride_out(self.url, lambda: fs.size(self._name(name))))
            except FileNotFoundError:
                return None

    def publish(self, name: str, data: bytes, *, by_holder: bool = False) -> None:
        """Make `data` appear under `name`, whole or not at all; replaces what was there. `by_holder`: see `staged`."""
        if self.is_local:
            with self.staged(name) as path, named(f"{self}/{name}"):
                path.write_bytes(data)
            return
        self._put(partial(self._located[0].pipe_file, self._name(name), data), name, by_holder)

    @contextlib.contextmanager
    def staged(self, name: str, *, by_holder: bool = False) -> Iterator[Path]:
        """A local path to write; on a clean exit its bytes appear under `name`, on an exception nothing does.

        `by_holder`: of a folder that is held by a lease (`alone`), only whoever works for its holder replaces what is
        there. Raises `UserError` if another run has taken over.
        """
        if not self.is_local:
            with tempfile.TemporaryDirectory(prefix="clipstill-") as scratch:
                path = Path(scratch) / "payload"
                yield path
                self._put(partial(self._located[0].put_file, str(path), self._name(name)), name, by_holder)
            return
        folder = self.path
        path = folder / f".{name}.{uuid.uuid4().hex}.tmp"
        with _explained(self.url):
            # What the caller raises is the caller's own; whether this folder can be written is settled before.
            folder.mkdir(parents=True, exist_ok=True)
            claim = _claim(path)
        try:
            yield path
            with _explained(self.url):
                sync_to_disk(path)
                path.replace(folder / name)
                sync_to_disk(folder)
        finally:
            path.unlink(missing_ok=True)
            os.close(claim)

    def _put(self, put: Callable[..., Any], name: str, by_holder: bool) -> None:
        with _explained(self.url):
            held = lease.over(self.url) if by_holder else None
            lease.put(self._located[0], self._name(name), held, put) if held else ride_out(self.url, put)

    def refuse_lost(self) -> bool:
        """Raise `UserError` if another run has taken over the lease of this folder; whether there is a lease."""
        held = lease.over(self.url)
        if held is not None:
            lease.refuse_lost(held)
        return held is not None

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        fs, _ = self._located
        with _explained(self.url), contextlib.suppress(FileNotFoundError):
            ride_out(self.url, lambda: fs.rm_file(self._name(name)))

    def remove(self) -> None:
        """Remove the folder with all that is in it, if it is there."""
        fs, path = self._located
        with _explained(self.url), contextlib.suppress(FileNotFoundError):
            fs.invalidate_cache()
            ride_out(self.url, lambda: fs.rm(path, recursive=True))

    def sweep(self) -> int:
        """Remove what killed writers left half-written, here and in the `_...` folders beside the shards.

        What a living writer is at is left alone. Returns how many were removed.
        """
        if not self.is_local or not self.path.is_dir():
            return 0
        return sum(_remove_unclaimed(path) for path in [*self.path.glob(".*.tmp"), *self.path.glob("_*/.*.tmp")])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process holds this folder, then hold it; of object stores only S3's can be held.

        A local folder that was made for it and is still empty in the end is removed.
        """
        if not self.is_local:
            fs, path = self._located
            with contextlib.ExitStack() as stack:
                with _explained(self.url):  # what the block raises is the block's own
                    stack.enter_context(leased(fs, path, self.url))
                yield
            return
        made = not self.path.exists()
        with _explained(self.url):
            self.path.mkdir(parents=True, exist_ok=True)
            held = os.open(self.path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                _wait_for(held, self.url)
            yield
        finally:
            os.close(held)
            if made:
                with contextlib.suppress(OSError):
                    self.path.rmdir()

    def fetch(self, name: str, sha256: str, *, fresh: bool = False) -> Path:
        """A local path that holds `name`: the file itself, or for an object store a copy kept by its hash.

        Copies live under `$CLIPSTILL_CACHE` (default `~/.cache/clipstill`) and take up to `$CLIPSTILL_CACHE_BYTES`
        (default half of that disk) beside what is being copied; the one used longest ago goes first, one in use never.
        A copy is complete or absent; of several who want it one copies and the others wait. With `fresh` it is copied
        again even if a copy is there. Raises `OSError` if the store's bytes hash otherwise.
        """
        if self.is_local:
            return self.path / name
        root = Folder(copies.root())
        held = root.path / sha256
        used = None if fresh else copies.use(held)
        if used is None:
            with _explained(root.url):
                root.path.mkdir(parents=True, exist_ok=True)
                turn = root.path / f".{sha256}.tmp"
                claim = _claim(turn)
            try:
                used = None if fresh else copies.use(held)
                if used is None:
                    self._copy(name, sha256, root)
                    used = copies.use(held)
                    copies.make_room()
            finally:
                turn.unlink(missing_ok=True)
                os.close(claim)
        if used is not None:
            copies.recent.add(used)
        return held

    def _copy(self, name: str, sha256: str, root: Folder) -> None:
        root.sweep()
        fs, _ = self._located
        url = f"{self.url}/{name}"

        def copy() -> None:
            fs.get_file(self._name(name), str(path))
            with path.open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
            if got != sha256:
                if (size := int(fs.size(self._name(name)))) != (came := path.stat().st_size):
                    raise short_read(url, came, size)
                raise ShortReadError(f"{url}: downloaded bytes hash to {got}, expected {sha256}")

        with _explained(self.url), root.staged(sha256) as path:
            ride_out(url, copy)


def _absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise UserError(f"there is no such home folder ({error})", where=path, do="Give the whole path") from None


def _wait_for(descriptor: int, url: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("%s: another run is at work here; waiting for its end", url)
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _claim(path: Path) -> int:
    """Create a file that `_remove_unclaimed` leaves alone until the descriptor is closed or this process has died."""
    while True:
        claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(claim, fcntl.LOCK_EX)
        if os.fstat(claim).st_nlink:
            return claim
        os.close(claim)  # removed between its creation and the lock


def _remove_unclaimed(path: Path) -> bool:
    try:
        claim = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # claimed; or a file system without locks, where nobody can tell
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(claim)


def sync_to_disk(path: Path) -> None:
    """Return once a file's bytes, or a folder's list of names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(url: str, *, absent_is_error: bool = True) -> Iterator[None]:
    """Turn storage errors that only the user can mend (path, permission, credentials, bucket) into `UserError`."""
    try:
        yield
    except FileNotFoundError as error:
        if not absent_is_error:
            raise
        raise UserError("the folder or bucket does not exist", where=url, do="Check the path") from error
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        reason = error.strerror or str(error)
        if "too skewed" in reason or "time is too large" in reason:
            raise UserError(f"cannot be used ({reason})", where=url, do="Set this machine's clock") from error
        raise UserError(f"cannot be used ({reason})", where=url, do="Check the path and credentials") from error
    except Exception as error:
        if type(error).__name__ in CREDENTIALS:
            raise UserError(f"no usable credentials ({error})", where=url, do="Set the store's credentials") from error
        if "://" in url and is_passing(error) and not came_wrong(error):
            raise UserError(f"cannot be reached ({error})", where=url, do="Check the endpoint and network") from error
        raise
