"""Files below a folder, local or of any storage of fsspec's, with its errors as one line each."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shards.errors import UserError
from shards.stores import told


class Tree:
    """A folder by its URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        with _explained(url):
            try:
                self._fs, self._path = fsspec.core.url_to_fs(url)
            except (ImportError, ValueError) as error:
                raise UserError(f"cannot be opened ({error})", where=url, do="Check the URL") from None

    def __str__(self) -> str:
        return self.url

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def child(self, name: str) -> Tree:
        return Tree(f"{self.url.rstrip('/')}/{name}")

    def parent(self) -> Tree:
        return Tree(self.url.rstrip("/").rpartition("/")[0] or "/")

    def _name(self, name: str) -> str:
        return f"{str(self._path).rstrip('/')}/{name}" if name else str(self._path)

    def kind(self) -> str:
        """ "folder", "file" or "" of what is not there."""
        with _explained(self.url):
            if self._fs.isfile(self._path):
                return "file"
            return "folder" if self._fs.isdir(self._path) else ""

    def listed(self) -> tuple[frozenset[str], frozenset[str]]:
        """The names of folders and of files directly here, hidden ones left out; none if it cannot be listed."""
        with _explained(self.url):
            try:
                entries = self._fs.ls(self._path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return frozenset(), frozenset()
            split: dict[bool, set[str]] = {True: set(), False: set()}
            for entry in entries:
                name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
                is_folder = entry["type"] == "directory"
                if entry["type"] == "link" or entry.get("islink"):
                    is_folder = bool(self._fs.isdir(entry["name"]))
                if not name.startswith("."):
                    split[is_folder].add(name)
            return frozenset(split[True]), frozenset(split[False])

    def has(self, name: str) -> bool:
        with _explained(self.url):
            return bool(self._fs.exists(self._name(name)))

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError` if it is absent."""
        with _explained(f"{self.url}/{name}"):
            return bytes(self._fs.cat_file(self._name(name)))

    def text(self, name: str) -> str | None:
        """A file of text in UTF-8; None if it is absent."""
        try:
            return self.read(name).decode("utf-8-sig")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise UserError(f"this is no text in UTF-8 (byte {error.start})", where=f"{self.url}/{name}") from None

    def lines(self, name: str) -> list[str] | None:
        """The lines of a text, without spaces around them and empty ones at its end; None if it is absent."""
        text = self.text(name)
        if text is None:
            return None
        found = [line.strip() for line in text.splitlines()]
        while found and not found[-1]:
            found.pop()
        return found

    def local(self, name: str) -> Path:
        """The file, or a copy in `$TMPDIR` that is gone when the command ends."""
        if self.is_local:
            return Path(self._name(name))
        with _explained(f"{self.url}/{name}"):
            with tempfile.NamedTemporaryFile(prefix="clipstill-", delete=False) as copy:
                self._fs.get_file(self._name(name), copy.name)
            return Path(copy.name)

    def mapped(self, name: str) -> memoryview:
        """Its bytes, mapped. Of a file from elsewhere a copy in `$TMPDIR` that vanishes with the process."""
        path = self.local(name)
        try:
            if not path.stat().st_size:
                return memoryview(b"")
            with path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        finally:
            if not self.is_local:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError, FileNotFoundError):
        raise
    except Exception as error:
        if (known := told(error)) is None:
            raise
        raise UserError(known[0], where=where, do=known[1]) from error
