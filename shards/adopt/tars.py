"""Which tars a user means: braces, globs, folders and single files, on a local disk or any storage of fsspec's."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import braceexpand
from fsspec.implementations.local import LocalFileSystem

from shards import credentials
from shards.errors import UserError
from shards.outages import ride_out
from shards.ranges import short_read
from shards.stores import located, told

_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Tar:
    """A tar and what its storage says of it: size in bytes, and of a local one its time in ns since 1970."""

    url: str
    bytes: int
    modified: int | None = None

    @property
    def stem(self) -> str:
        """Its name without folder and ending."""
        return self.url.rpartition("/")[2].removesuffix(".tar")

    def changed(self) -> bool:
        """Whether its storage says otherwise by now."""
        return _look(self.url) != self

    @contextlib.contextmanager
    def mapped(self) -> Iterator[memoryview]:
        """Its bytes; from elsewhere by a copy in `$TMPDIR`, gone in the end."""
        fs, path = located(self.url)
        with contextlib.ExitStack() as stack:
            if not isinstance(fs, LocalFileSystem):
                copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="clipstill-", suffix=".tar"))
                self._copy(copy.name)
                path = copy.name
            file = stack.enter_context(open(path, "rb"))
            if not Path(path).stat().st_size:
                yield memoryview(b"")
                return
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            held.madvise(mmap.MADV_SEQUENTIAL)
            # Closed with the last view of it, which an exception may hold on to.
            yield memoryview(held)

    def _copy(self, to: str) -> None:
        fs, path = located(self.url)

        def copy() -> None:
            fs.get_file(path, to)
            if (size := Path(to).stat().st_size) != self.bytes:
                raise short_read(self.url, size, self.bytes)

        ride_out(self.url, copy)


def find_tars(patterns: Iterable[str]) -> tuple[Tar, ...]:
    """Every tar that the patterns name, each once, in their order; what a glob or a folder has is sorted by name.

    Raises `UserError` for a pattern that finds none, and for what is no tar.
    """
    found: dict[str, Tar] = {}
    for pattern in patterns:
        if credentials.are_in(pattern):
            raise UserError(
                "a signature or password in a URL would stand in the dataset's records, and end before it does",
                where=pattern,
                do="Give s3://... or the like with credentials in the environment, or adopt a copy",
            )
        try:
            texts = list(braceexpand.braceexpand(pattern, escape=False))
        except ValueError:
            texts = [pattern]
        for text in texts:
            with _explained(text):
                for url in _urls(text):
                    found.setdefault(url, _look(url))
    return tuple(found.values())


def _urls(text: str) -> list[str]:
    fs, path = located(text)
    if _GLOB & set(text.partition("://")[2] or text) and not fs.exists(path):
        found = sorted(fs.glob(path))
    elif fs.isdir(path):
        found = sorted(fs.find(path))
        found = [name for name in found if name.endswith(".tar") and "/." not in name]
    else:
        found = [path]
    if not found:
        raise UserError("no tar is there", where=text, do="Check the path, or quote the pattern")
    return [str(fs.unstrip_protocol(name)).removeprefix("file://") for name in found]


def _look(url: str) -> Tar:
    fs, path = located(url)
    if isinstance(fs, LocalFileSystem):
        state = Path(path).stat()
        return Tar(url, state.st_size, state.st_mtime_ns)
    return Tar(url, int(ride_out(url, lambda: fs.info(path))["size"]))


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if (known := told(error)) is None:
            raise
        raise UserError(known[0], where=where, do=known[1]) from error
