"""Progress of long work: a bar on a terminal, plain lines elsewhere. Drawn by the driver only."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class Meter:
    """Counts units done (`shards`, `steps`) and, beside them, items a second (`samples`); use as a context manager."""

    def __init__(self, label: str, total: int, *, unit: str, items: str = "samples", done: int = 0) -> None:
        self.label, self.total, self.unit, self.items, self.done = label, total, unit, items, done
        self._count = self._before = 0
        self._moved = False
        self._note = ""
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Meter:
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self.label, total=self.total, completed=self.done, note="")
        return self

    def expect(self, total: int, before: int) -> None:
        """Say that there are `total` units by now, of which `before` were done already."""
        self.done += before - self._before
        self.total, self._before = total, before
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self.total, completed=self.done)

    def advance(self, units: int = 1, items: int = 0, note: str = "") -> None:
        """Say that `units` more are done, `items` more with them; `note` stands beside the rate."""
        self._moved = True
        self.done += units
        self._count += items
        self._note = note
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=f"{self._rate()} {note}".strip())
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._line()

    def _rate(self) -> str:
        seconds = time.monotonic() - self._began
        return f"{self._count / seconds:,.0f} {self.items}/s" if self._count and seconds > 0 else ""

    def _line(self) -> None:
        self._said = time.monotonic()
        parts = [f"{self.label}: {self.done}/{self.total} {self.unit}", self._rate(), self._note]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)  # noqa: T201

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None and self._moved:
            self._line()
