"""A run's logs: `log.jsonl`, a JSON line every few steps, and the same numbers for TensorBoard and, if asked, wandb.

    {"step": 20, "loss": ..., TERM: ..., "grad_norm": ..., "logit_scale": ..., "lr": ..., "measured": {...}}
    {"step": 20, "eval/zero_shot/top1": ...}

`measured` holds what differs from run to run: samples_per_second, waited (the share of time spent waiting for the
loader), memory_gb, seconds. On resume all are cut back to the checkpoint's step, so a killed run leaves no line twice
and no line of a future that did not happen. `events.jsonl` tells what happened to the run, and is never cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from distill.run_folder import RunFiles
from shards import UserError


class RunLog:
    """Use as a context manager. `start`: the step the run goes on from; `wandb`: a project to log to as well.

    Raises `UserError` if wandb is wanted and not installed.
    """

    def __init__(self, run: Path, start: int, wandb: str | None = None) -> None:
        self._files = RunFiles(run)
        self._files.cut_log(start)
        self._wandb = _start_wandb(wandb, run) if wandb else None
        self._file = self._files.log.open("a")
        self._board = SummaryWriter(str(self._files.tensorboard), purge_step=start + 1)

    def __enter__(self) -> RunLog:
        return self

    def write(self, step: int, values: Mapping[str, float], measured: Mapping[str, float] | None = None) -> None:
        """`values` after `step` steps; every number becomes a scalar. On disk when this returns."""
        line: dict[str, Any] = {"step": step, **values}
        if measured is not None:
            line["measured"] = dict(measured)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        scalars = {**values, **{f"measured/{name}": value for name, value in (measured or {}).items()}}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        # A thread writes the scalars; a kill after the next checkpoint must not find it behind.
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def event(self, step: int, kind: str, text: str) -> None:
        """Something that happened after `step` steps, in one line."""
        self._files.add_event(step, kind, text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def _start_wandb(project: str, run: Path) -> Any:
    try:
        import wandb  # noqa: PLC0415 - optional, and slow to load
    except ImportError:
        raise UserError(
            "wandb is not installed", where=f"--wandb {project}", do="Install it, or leave it out"
        ) from None
    return wandb.init(project=project, name=run.name, id=run.name, resume="allow", dir=str(run))
