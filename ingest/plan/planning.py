"""Planning beside fetching: a thread makes parts of the plan some way ahead of the workers.

So the first request waits for one part, however long the list. Parts whose shards are made are removed, so neither
memory nor the plan on disk grows with the list.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType

import pyarrow as pa

from ingest.plan.ahead import Ahead
from ingest.plan.parts import PLAN, read_rows
from ingest.plan.planner import Piece, Planner
from ingest.settings import IngestSettings
from shards import Folder, Spec, published_records
from shards.dataset import Stage
from shards.quantities import said_span

AHEAD = 16
"""Parts that are planned before the one that is being fetched, and parts kept behind it."""


class Planning:
    """The plan in `settings.out`, as it stands or is made meanwhile; use as a context manager.

    Raises:
        UserError: as `Planner`; what it finds while it plans is raised by whatever asks for shards.
    """

    def __init__(self, settings: IngestSettings) -> None:
        self._planner = Planner(settings)
        self._out = Folder(settings.out)
        self._ahead: Ahead[Piece] | None = None
        self._first: Piece | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Planning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead.close()

    @property
    def stage(self) -> Stage:
        """The first stage, as far as it is known."""
        return self._planner.stages[0]

    @property
    def rows(self) -> int:
        """The rows that are planned by now."""
        return sum(stage.rows for stage in self._planner.stages)

    def first_rows(self) -> pa.Table:
        """The rows of the first shard."""
        for piece in self._pieces() if self._first is None else ():
            if piece is not None:
                self._first = piece
                break
        assert self._first is not None
        return read_rows(self._out, replace(self._first.stage, parts=(self._first.part,)), self._first.shard)

    def specs(self) -> Iterator[Spec | None]:
        """A spec for every shard, in order, as they are planned; None each second in which there is none yet."""
        handed = 0
        for piece in self._pieces():
            if piece is None:
                yield None
                continue
            for shard in piece.shards:
                yield Spec(shard, self._out, piece.stage.fingerprint)
            handed += 1
            if handed % AHEAD == 0:
                self.tidy()

    def outlook(self) -> tuple[int, str]:
        """How many shards are planned by now, and words on how far the list is read; none once it is."""
        stages = self._planner.stages
        shards = sum(stage.shards for stage in stages)
        if stages[-1].whole:
            return shards, ""
        words = [f"planning: {self.rows:,} rows read"]
        share = self._planner.source.share_read
        if self._planner.planned_now and share:
            rate = self._planner.planned_now / (time.monotonic() - self._began)
            left = said_span(self.rows * (1 / share - 1) / rate)
            words += [f"{rate:,.0f} rows/s", f"{share:.0%} of the list, {left} left"]
        return shards, ", ".join(words)

    def tidy(self) -> None:
        """Remove the parts whose shards are made, but for the newest: their rows stand in the ledgers."""
        names = set(self._out.child(PLAN).names())
        old = [piece for piece in list(self._planner.planned())[:-AHEAD] if piece.part.name in names]
        made = published_records(self._out) if old else {}
        for piece in old:
            if not piece.lacking(made):
                self._out.child(PLAN).delete(piece.part.name)

    def _pieces(self) -> Iterator[Piece | None]:
        if self._ahead is None:
            self._ahead = Ahead(self._planner.pieces, AHEAD, self._planner.stop)
        if self._first is not None:
            yield self._first
        yield from self._ahead
