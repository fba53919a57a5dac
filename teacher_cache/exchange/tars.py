"""Tars of somebody else, read sample by sample in any order after one pass over their headers."""

from __future__ import annotations

import json
import mmap
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from shards import Folder, UserError, fingerprint
from shards.fingerprint import sha256_file
from shards.key_index import Entry, IndexWriter, KeyIndex
from shards.progress import Meter
from shards.tar_members import tar_members
from shards.typed_json import parsed

SOURCES = "_sources"
"""The folder in a cache where indices lie."""

_LARGEST = 256 * 2**20
"""Bytes of one sample's members together."""


@dataclass(frozen=True)
class IndexedTars:
    """Tars and where in them each sample is. Crosses processes; the index is mapped on first use.

    `rows` counts the runs of members that share a key, `content` is a hash over the names, sizes and header's checksums
    of all members.
    """

    tars: tuple[str, ...]
    folder: Folder
    index: str
    sha256: str
    rows: int
    content: str

    @cached_property
    def _keys(self) -> KeyIndex:
        return KeyIndex(self.folder.fetch(self.index, self.sha256))

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_keys"}

    def find(self, key: str) -> list[Entry]:
        """Where the members of a sample are; more than one place if they do not lie together."""
        return self._keys.find(key)

    def some(self, most: int) -> list[list[Entry]]:
        """Where the members of a few samples are, drawn from all tars; always the same ones."""
        return self._keys.groups(most)

    def where(self, entry: Entry) -> str:
        return self.tars[entry.file]

    def read(self, entries: Sequence[Entry]) -> dict[str, bytes] | None:
        """What the name has after its first dot → the member's bytes, of a sample's members in all its places.

        None where two members of one name differ: nobody knows which belong together, as with samples of the same key
        in two folders.
        """
        found: dict[str, bytes] = {}
        for entry in entries:
            with Path(self.where(entry)).open("rb") as file:
                file.seek(entry.start)
                piece = file.read(entry.size)
            for member in tar_members(piece):
                if member.link:
                    continue
                data = piece[member.offset : member.offset + member.size]
                if found.setdefault(_split(member.name)[1], data) != data:
                    return None
        return found


def look_at(tars: Sequence[str]) -> list[list[str | int]]:
    """Name, bytes and time of each tar. Raises `UserError` if there is none, or one is no file."""
    if not tars:
        raise UserError("no tars were given", do="Name the tars that were downloaded")
    stats: list[list[str | int]] = []
    for tar in tars:
        path = Path(tar)
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", where=tar, do="Check the path") from None
        if path.is_dir():
            told = "this is a folder, and tars are wanted"
            raise UserError(told, where=tar, do=f"Give those in it: {shlex.quote(str(path / '*.tar'))}")
        stats.append([path.name, stat.st_size, stat.st_mtime_ns])
    return stats


def index_tars(tars: Sequence[str], cache: Folder) -> IndexedTars:
    """Index the tars, or take up the index that an earlier run left in `cache` for the very same files.

    Only headers are read. Raises `UserError` if a file is missing, truncated or no tar.
    """
    folder = cache.child(SOURCES)
    name = fingerprint(look_at(tars))
    facts = _known_index(folder, name) or _make_index(tars, folder, name)
    return IndexedTars(tuple(tars), folder, f"{name}.arrow", facts.sha256, facts.rows, facts.content)


@dataclass(frozen=True)
class _IndexFacts:
    """Of an index: the hash of its file, and what `IndexedTars` says of the tars."""

    sha256: str
    rows: int
    content: str
    tars: tuple[str, ...]


def _known_index(folder: Folder, name: str) -> _IndexFacts | None:
    """The index that an earlier run left, None if there is none that is whole."""
    try:
        facts = parsed(_IndexFacts, folder.read(f"{name}.json"))
        return facts if sha256_file(folder.fetch(f"{name}.arrow", facts.sha256)) == facts.sha256 else None
    except (FileNotFoundError, ValueError):
        return None


def _make_index(tars: Sequence[str], folder: Folder, name: str) -> _IndexFacts:
    digest = sha256()
    with Meter("index", len(tars), unit="tars") as meter, IndexWriter() as writer:
        for number, tar in enumerate(tars):
            digest.update(Path(tar).name.encode())
            try:
                found = list(_samples(tar, number, digest.update))
            except ValueError as error:
                raise UserError(f"not a whole tar ({error})", where=tar, do="Download it again") from None
            keys, entries = [key for key, _ in found], [entry for _, entry in found]
            writer.add(keys, number, [entry.start for entry in entries], [entry.size for entry in entries])
            meter.advance(1, items=len(found))
        if not writer.rows:
            raise UserError("these tars hold nothing", where=f"{tars[0]} to {tars[-1]}", do="Name others")
        with folder.staged(f"{name}.arrow") as path:
            writer.write(path)
            index = sha256_file(path)
    facts = _IndexFacts(index, writer.rows, digest.hexdigest()[:16], tuple(tars))
    folder.publish(f"{name}.json", json.dumps(asdict(facts), indent=1).encode())
    return facts


def _samples(path: str, number: int, seen: Callable[[bytes], None]) -> Iterator[tuple[str, Entry]]:
    """Key and place of each run of members that share a key."""
    key, start, end = None, 0, 0
    with Path(path).open("rb") as file:
        # Closed with the last view of it, which an exception may hold on to.
        tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for member in tar_members(tar, whole=True):
            seen(f"{member.name} {member.size} {member.checksum}".encode())
            this = _split(member.name)[0]
            if this != key:
                if key is not None:
                    yield key, Entry(number, start, end - start)
                key, start = this, member.start
            end = member.end
            if end - start > _LARGEST:
                raise ValueError(f"sample {key} takes more than {_LARGEST} bytes")
    if key is not None:
        yield key, Entry(number, start, end - start)


def _split(name: str) -> tuple[str, str]:
    """Key and the rest, as webdataset cuts a member's name: at the first dot after the folders."""
    stem, _, rest = name.rsplit("/", 1)[-1].partition(".")
    return stem, rest
