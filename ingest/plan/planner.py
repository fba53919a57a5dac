"""What makes a plan: parts one after the other, each on disk before the next is begun.

    Source.tables() → rows with hashes → marking.py (with seen.py) → whole shards → parts.py → planning.json
    … and once the list is read → dataset.json, or of a list that has grown _rounds/NNN.json

What is there when a run dies stays: reading goes on with the row after the last part's.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ingest.command import command_of
from ingest.ledger import read_ledger
from ingest.plan.ahead import StoppedError
from ingest.plan.inputs import Hashing, fingerprint_of, has_grown, is_as_it_was
from ingest.plan.marking import Marks, Rows, shard_ends
from ingest.plan.parts import PART_BYTES, PART_ROWS, PLAN, part_name, write_part
from ingest.plan.seen import Seen
from ingest.plan.sense import Sense
from ingest.settings import IngestSettings
from ingest.sources import Source
from shards import Folder, UserError, copies, fingerprint, published_records, sound_records
from shards.dataset import (
    DatasetPlan,
    PlanPart,
    Stage,
    publish_planning,
    publish_whole,
    read_lists,
    remove_remains,
)
from shards.errors import full_disk
from shards.fingerprint import sha256_file
from shards.keys import check_dataset_name
from shards.record import RecordName, is_made

log = logging.getLogger(__name__)

SEEN = "_seen"
_FIVE_DIGITS = 100_000
"""So many shards have names of one length."""


class Piece(NamedTuple):
    """A part of a stage: `shard` and `row` are its first ones, `sequence` its number over all stages."""

    stage: Stage
    part: PlanPart
    sequence: int
    shard: int
    row: int

    @property
    def shards(self) -> range:
        return range(self.shard, self.shard + self.part.shards)

    def lacking(self, made: dict[int, RecordName]) -> list[int]:
        """Its shards that are not among `made`, the records that are published."""
        return [shard for shard in self.shards if not is_made(made, shard, self.stage.fingerprint)]


class Planner:
    """The stages of the plan in `settings.out`, as they stand there or are yet to be planned.

    Nothing is written before `pieces` is asked. A plan of another list of which nothing has been fetched makes room.

    Raises:
        UserError: unusable input or settings, or a folder that holds another dataset.
    """

    def __init__(self, settings: IngestSettings) -> None:
        check_dataset_name(settings.name)
        self._settings = settings
        self.source = Source(settings.source)
        if self.source.digest_hash not in {None, settings.image.hash}:
            raise UserError(
                f"the input promises {self.source.digest_hash} hashes, "
                f"but originals are hashed with {settings.image.hash}",
                do=f"Choose --hash {self.source.digest_hash}",
            )
        self._out = Folder(settings.out)
        remove_remains(self._out)
        self.stages = self._current_stages()
        self.stop = threading.Event()
        """Set by whoever wants nothing more; `pieces` then raises `StoppedError`."""
        self.planned_now = 0
        """Rows that were planned by this object, not found planned."""
        self._index: Seen | None = None

    def planned(self) -> Iterator[Piece]:
        """All parts that are planned by now."""
        sequence = 0
        for stage in list(self.stages):
            shard, row = stage.first, _first_row(stage)
            for part in stage.parts:
                yield Piece(stage, part, sequence, shard, row)
                sequence, shard, row = sequence + 1, shard + part.shards, row + part.rows

    def pieces(self) -> Iterator[Piece]:
        """Every part in order, those that stand and then those that are planned now.

        One whose rows are wanted, and are neither there as they were written nor in its ledgers, is planned again.

        Raises:
            UserError: an input that turns out to be unusable or senseless, or a full disk.
        """
        made = sound_records(self._out) if any(stage.parts for stage in self.stages) else {}
        sizes = self._out.child(PLAN).sizes()
        for piece in self.planned():
            lacking = piece.lacking(made)
            if lacking and not self._has_rows(piece.part, lacking, sizes.get(piece.part.name)):
                self._plan_again(piece)
            yield piece
        if not self.stages[-1].whole:
            yield from self._go_on(self.stages[-1])

    # What is there.

    def _has_rows(self, part: PlanPart, lacking: list[int], size: int | None) -> bool:
        """Whether the rows of the shards that are `lacking` can be read: a part of `size` bytes, or none, is there."""
        if size is None:
            return all(map(self._has_ledger, lacking))
        # What is on an object store is hashed by whoever copies it.
        place = self._out.child(PLAN)
        return size == part.bytes and not (place.is_local and sha256_file(place.path / part.name) != part.sha256)

    def _has_ledger(self, shard: int) -> bool:
        try:
            read_ledger(self._out, shard)
        except UserError:
            return False
        return True

    def _current_stages(self) -> list[Stage]:
        stages = read_lists(self._out)
        if stages:
            try:
                grown = has_grown(self._out, stages, self.source, self._settings)
            except UserError:
                if stages[0].whole or published_records(self._out):
                    raise
            else:
                return [*stages, self._begun(stages)] if grown else stages
        return [self._begun([])]

    def _begun(self, before: list[Stage]) -> Stage:
        """A stage of which nothing is planned yet, after those `before`."""
        identity = self._settings.identity()
        known = before[-1].inputs if before else ()
        hashes = {place: old.sha256 for place, old in enumerate(known) if is_as_it_was(old, self.source.looks[place])}
        inputs = tuple(replace(look, sha256=hashes.get(place)) for place, look in enumerate(self.source.looks))
        all_stages = DatasetPlan.read(self._out).stages if before else ()
        return Stage(
            settings=identity,
            inputs=inputs,
            name=self._settings.name,
            command=command_of(self._settings),
            captioned=before[0].captioned if before else self.source.captioned,
            fingerprint=fingerprint_of(identity, inputs, before[-1].fingerprint if before else None),
            round=f"{len(all_stages):03d}" if before else None,
            first=all_stages[-1].numbers.stop if before else 0,
            row=sum(stage.rows for stage in before),
            whole=False,
        )

    def _seen(self) -> Seen:
        """The index of the parts that are planned, made again from the list if it is not there."""
        if self._index is None:
            place = self._out.child(SEEN)
            if not self._out.is_local:
                name = fingerprint([self._out.url, self.stages[0].fingerprint])
                place = Folder(copies.root()).child(".seen", name)
            planned = list(self.planned())
            self._index = Seen(place, len(planned))
            if not self._index.whole:
                self._index.clear()
                reading = _Reading(Source(self._settings.source), 0, self.stop)
                for piece in planned:
                    self._enter(piece.sequence, reading.marked(piece.part.rows, self._index))
                    reading.drop(piece.part.rows)
        return self._index

    # What is made.

    def _go_on(self, stage: Stage) -> Iterator[Piece]:
        """Plan what is not planned yet of a stage, then publish it as a whole one."""
        seen, prefix = self._seen(), "" if stage.round is None else f"round-{stage.round}"
        self._remove_strays(stage, prefix)
        sense = None if stage.parts or stage.round else Sense()
        where = ", ".join(self.source.paths)
        hashing = Hashing(self.source.inputs, stage.inputs)
        try:
            reading = _Reading(self.source, _first_row(stage) + stage.rows, self.stop)
            sequence, shard = len(list(self.planned())), stage.numbers.stop
            while reading.any():
                marks, ends = self._whole_shards(reading, seen)
                if sense is not None:
                    sense.see(marks.rows.table)
                    if not stage.parts:
                        # Before anything is fetched; a condition may yet be met.
                        sense.refuse_nonsense(replace(self._settings.source, where=()), where)
                table = self._enter(sequence, marks)
                part = self._write(part_name(prefix, len(stage.parts)), table, ends)
                piece = Piece(stage, part, sequence, shard, reading.row)
                stage = replace(
                    stage,
                    inputs=hashing.so_far(),
                    shards=stage.shards + part.shards,
                    rows=stage.rows + part.rows,
                    parts=(*stage.parts, part),
                )
                with full_disk(str(self._out)):
                    publish_planning(self._out, stage)
                reading.drop(part.rows)
                self.stages[-1] = stage
                self.planned_now += part.rows
                pa.default_memory_pool().release_unused()
                if len(stage.parts) == 1:
                    self._warn_of_names(stage)
                yield piece
                sequence, shard = sequence + 1, shard + part.shards
            if sense is not None:
                sense.refuse_nonsense(self._settings.source, where)
            with full_disk(str(self._out)):
                whole = publish_whole(self._out, replace(stage, inputs=hashing.all(self.stop)))
        finally:
            hashing.close()
        self.stages[-1] = whole
        if not self._out.is_local:
            seen.clear()

    def _whole_shards(self, reading: _Reading, seen: Seen) -> tuple[Marks, list[int]]:
        """The next rows as they are marked, as many as make a part, and where their shards end: one at least."""
        size, most = self._settings.shard_size, PART_BYTES
        while True:
            marks = reading.marked(max(PART_ROWS, size), seen, most)
            if ends := shard_ends(marks, size, PART_ROWS, ended=reading.ended):
                return marks.slice(ends[-1]), ends
            most *= 2

    def _enter(self, sequence: int, marks: Marks) -> pa.Table:
        """Add a part's rows to the index; returns them as they are planned."""
        assert self._index is not None
        table = marks.table(self._settings.name)
        hashes, rows = marks.entries(table, captioned=self.stages[0].captioned)
        with full_disk(str(self._index.folder)):
            # What is due is merged first: a part that is not published yet must not be in a run with others.
            self._index.merge()
            self._index.add(sequence, hashes, rows)
        return table

    def _write(self, name: str, table: pa.Table, ends: list[int]) -> PlanPart:
        # With a chunk more it is copied in any case: a slice is written with bits of the row after it.
        table = pa.concat_tables([table, table.schema.empty_table()]).combine_chunks()
        tables = [table.slice(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]
        place = self._out.child(PLAN)
        with full_disk(str(place) if self._out.is_local else f"{place} or $TMPDIR"):
            return write_part(self._out, name, tables)

    def _plan_again(self, piece: Piece) -> None:
        seen = self._seen()
        reading = _Reading(Source(self._settings.source), piece.row, self.stop)
        marks = reading.marked(piece.part.rows, seen)
        ends = shard_ends(marks, self._settings.shard_size, PART_ROWS, ended=True)
        if self._write(piece.part.name, marks.table(self._settings.name), ends) != piece.part:
            raise UserError(
                f"the rows from {piece.row} on are not those that were planned",
                where=", ".join(self.source.paths),
                do="Restore the list as it was",
            )

    def _remove_strays(self, stage: Stage, prefix: str) -> None:
        """Remove parts that an attempt has left which came to no end, or another list's."""
        names = {part.name for part in stage.parts}
        for name in self._out.child(PLAN).names(prefix):
            if name not in names and name.startswith("round-") == bool(prefix):
                self._out.child(PLAN).delete(name)

    def _warn_of_names(self, stage: Stage) -> None:
        shards = stage.shards / max(self.source.share_read, 1e-9)
        if shards > _FIVE_DIGITS:
            # A tenth more than it looks like now.
            size = 1000 * math.ceil(1.1 * shards * self._settings.shard_size / _FIVE_DIGITS / 1000)
            log.warning(
                "ingest: about %s shards: from %s on their names have six digits, which patterns like "
                "{00000..99999}.tar and sorted listings do not expect; --shard-size %d makes fewer",
                f"{shards:,.0f}",
                f"{_FIVE_DIGITS:,}",
                size,
            )


def _first_row(stage: Stage) -> int:
    assert stage.row is not None
    return stage.row


class _Reading:
    """The input's rows from the row `row` on; what was dropped is gone."""

    def __init__(self, source: Source, row: int, stop: threading.Event) -> None:
        self.row = row
        self.ended = False
        """Whether no rows come after those that were looked at last."""
        self._tables, self._stop, self._files = source.tables(row), stop, source.files
        self._held: list[Rows] = []

    def any(self) -> bool:
        """Whether there is another row."""
        return self._count(1) > 0

    def marked(self, most: int, seen: Seen, most_bytes: float = math.inf) -> Marks:
        """The next rows, `most` unless there are fewer or more than `most_bytes`, after all those that `seen` knows."""
        # One more tells whether there are more.
        self._count(most + 1, most_bytes)
        held = Rows.joined(self._held)
        fitting = int(np.searchsorted(np.cumsum(held.sizes), most_bytes, side="right"))
        count = min(most, max(fitting, 1), len(held))
        self.ended = count == len(held)
        self._held = [held]
        return Marks.of(held.slice(0, count), self.row, seen)

    def drop(self, rows: int) -> None:
        """Be done with so many of the next rows."""
        self._held = [self._held[0].slice(rows, len(self._held[0]))]
        self.row += rows

    def _count(self, wanted: int, most_bytes: float = math.inf) -> int:
        """The rows at hand, `wanted` at least unless there are fewer, or two have more than `most_bytes`."""
        count, size = sum(map(len, self._held)), sum(int(rows.sizes.sum()) for rows in self._held)
        while count < wanted and not (count > 1 and size > most_bytes):
            if self._stop.is_set():
                raise StoppedError
            table = next(self._tables, None)
            if table is None:
                break
            if table.num_rows:
                self._held.append(Rows.of(table, files=self._files))
                count, size = count + table.num_rows, size + int(self._held[-1].sizes.sum())
        return count
