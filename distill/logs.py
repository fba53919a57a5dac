"""A run's log: one JSON line every few steps in `log.jsonl`, the same numbers for TensorBoard.

On resume both are cut back to the checkpoint's step, so a killed run leaves no line twice and no line of a future
that did not happen.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Use as a context manager. `start`: the step the run goes on from."""

    def __init__(self, run: Path, start: int) -> None:
        self.path = run / "log.jsonl"
        kept = [line for line in read_log(self.path) if line["step"] <= start]
        temporary = run / ".log.jsonl.tmp"
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> RunLog:
        return self

    def write(self, step: int, values: dict[str, Any]) -> None:
        """`values` after `step` steps; every number becomes a TensorBoard scalar. On disk when this returns."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        # A thread writes the scalars; a kill after the next checkpoint must not find it behind.
        self._board.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line cut off by a kill is left out."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
