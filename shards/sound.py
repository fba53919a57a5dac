"""Which published shards are sound, by the names and sizes of their files: what a run has not to make again."""

from __future__ import annotations

from collections.abc import Mapping

from shards.record import (
    RECORDS,
    Gathered,
    RecordName,
    ShardRecord,
    gather_records,
    is_made,
    published_records,
    read_records,
)
from shards.storage import Folder


def damaged_shards(folder: Folder, records: Mapping[int, ShardRecord]) -> dict[int, str]:
    """Of these shards, by number, those whose files are not as recorded: shard number → `00001.tar is missing`.

    Gone, or of another size: one listing tells, however many there are. No byte is read; that is `verify`'s.
    """
    sizes: dict[Folder, dict[str, int]] = {}
    found: dict[int, str] = {}
    for shard, record in records.items():
        wanted: dict[tuple[Folder, str], int | None] = {(folder, name): None for name in record.beside}
        wanted |= {file.place(folder): file.bytes for file in record.files}
        for (where, name), expected in wanted.items():
            if where not in sizes:
                sizes[where] = where.sizes()
            size = sizes[where].get(name)
            if size is None:
                found[shard] = f"{name} is missing"
            elif expected is not None and size != expected:
                found[shard] = f"{name} has {size} bytes instead of {expected}"
    return found


def sound_records(folder: Folder) -> dict[int, RecordName]:
    """As `published_records`, without those whose files are gone or have another size."""
    names = published_records(folder)
    damaged = damaged_shards(folder, read_records(folder, names.values()))
    return {shard: name for shard, name in names.items() if shard not in damaged}


def withdraw_damaged(folder: Folder) -> None:
    """Delete the records of shards whose files are gone or have another size: they are not done."""
    names = published_records(folder)
    for shard in damaged_shards(folder, read_records(folder, names.values())):
        folder.child(RECORDS).delete(str(names[shard]))


class PublishedShards:
    """What is done already: in each folder that is asked about, one listing of its records and one of its files.

    What was read is kept until something is made, so that a run that finds everything done reads nothing twice.
    """

    def __init__(self) -> None:
        self._names: dict[Folder, dict[int, RecordName]] = {}
        self._damaged: dict[Folder, dict[int, str]] = {}
        self._gathered: dict[Folder, Gathered] | None = {}
        self.withdrawn: list[str] = []

    def has(self, folder: Folder, shard: int, fingerprint: str) -> bool:
        """Whether a shard is made as was asked for; its record is withdrawn if its files are not as it says."""
        if folder not in self._names:
            self._names[folder] = published_records(folder)
            gathered = gather_records(folder, self._names[folder].values())
            self._damaged[folder] = damaged_shards(folder, gathered.records)
            if self._gathered is not None:
                self._gathered[folder] = gathered
        if not is_made(self._names[folder], shard, fingerprint):
            return False
        if shard in self._damaged[folder]:
            folder.child(RECORDS).delete(str(self._names[folder].pop(shard)))
            self.withdrawn.append(self._damaged[folder][shard])
            return False
        return True

    def forget(self) -> None:
        """Something is going to be made."""
        self._gathered = None

    def unchanged(self, folder: Folder) -> dict[int, ShardRecord] | None:
        """What is published in a folder, if nothing was made since it was looked at, and its manifest has it all."""
        gathered = self._gathered.get(folder) if self._gathered is not None else None
        return gathered.records if gathered is not None and gathered.is_manifest_whole else None
