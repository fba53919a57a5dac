"""What a run writes and shows while it trains: log lines, evaluations, events, progress, its page."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from types import TracebackType

import torch

from distill.report import write_run_page
from distill.run_folder import RunFiles
from distill.training.interrupt import Interrupted
from distill.training.logs import RunLog
from distill.training.monitor import Watch
from distill.training.run import Run
from shards import UserError
from shards.progress import Meter

log = logging.getLogger(__name__)

_STARVED = 0.5
"""Of the time between two log lines: waiting this long for batches is worth a word."""


class Record:
    """What the first process of a run writes and shows while it trains; of the others, nothing.

    Use as a context manager. `start`: the step that the run goes on from; `note`: what a reader of its evaluations must
    know.
    """

    def __init__(self, run: Run, watch: Watch, files: RunFiles, start: int, note: str | None) -> None:
        self._run, self._watch, self._files, self._start, self._note = run, watch, files, start, note
        self._began = self._since = time.monotonic()
        self._at, self._waited = start, 0.0
        self._stack = contextlib.ExitStack()
        self._starved = False
        self._next_page = 0.0

    def __enter__(self) -> Record:
        if self._run.ranks.first:
            label, start = f"distill {self._files.path.name}", self._start
            self._log = self._stack.enter_context(RunLog(self._files.path, start, self._run.settings.wandb))
            self._meter = self._stack.enter_context(Meter(label, self._run.steps, unit="steps", done=start))
            if self._note and not start:
                self._log.event(0, "evaluation", self._note)
                log.warning("%s", self._note)
            if start:
                self._log.event(start, "resumed", f"went on from step {start}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run.ranks.first and isinstance(error, UserError | Interrupted):
            self._log.event(self._at, "stopped", str(error))
            write_run_page(self._files.path)
        self._stack.__exit__(kind, error, trace)

    def line(self, step: int) -> None:
        """Log the means since the last line, and how fast it went."""
        run = self._run
        means = self._watch.take()
        if not run.ranks.first:
            return
        for name, term in run.terms.items():
            if not isinstance(term.weight, int | float):
                means[f"weight/{name}"] = run.weights(step - 1)[name]
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        waited = min(1.0, (run.loader.waited - self._waited) / seconds)
        measured = {
            "samples_per_second": (step - self._at) * run.settings.batch_size / seconds,
            "waited": waited,
            "memory_gb": _memory_gb(run.device),
            "seconds": now - self._began,
        }
        self._log.write(step, {**means, "lr": run.optimiser.param_groups[0]["lr"]}, measured)
        # The first line's wait is for the first batch.
        if waited > _STARVED and not self._starved and self._at > self._start:
            self._starved = True
            self._starve(step, waited, measured["samples_per_second"])
        self._since, self._at, self._waited = now, step, run.loader.waited

    def _starve(self, step: int, waited: float, rate: float) -> None:
        text = (
            f"starved: {waited:.0%} of the time since step {self._at} went by waiting for batches ({rate:,.0f} samples "
            "a second came). Give it more cores or a faster disk, or store smaller images"
        )
        log.warning("%s", text)
        self._log.event(step, "starved", text)

    def advance(self) -> None:
        if self._run.ranks.first:
            last = self._watch.last
            self._meter.advance(1, items=self._run.settings.batch_size, note=f"loss {last:.3f}" if last else "")

    def evaluated(self, step: int, figures: dict[str, float], seconds: float, refused: list[str]) -> None:
        """`refused`: why sets gave no figures; it stops nothing, and is said wherever a run says something."""
        if figures:
            self._log.write(step, figures)
            log.info("after step %d: %s", step, _evaluation_in_words(figures))
        for reason in refused:
            text = f"not evaluated after step {step}: {reason}"
            log.warning("%s", text)
            self._log.event(step, "evaluation", text)
        # An evaluation is no part of the training's speed.
        self._since += seconds

    def page(self) -> None:
        """Renew the run's page, unless that would take more than a hundredth of the time."""
        began = time.monotonic()
        if began >= self._next_page:
            write_run_page(self._files.path)
            ended = time.monotonic()
            self._next_page = ended + 100 * (ended - began)


def _evaluation_in_words(figures: dict[str, float]) -> str:
    """The figures that people look at first, of several sets with their names."""
    told = []
    for name, value in figures.items():
        words = next((words for ending, words in _FIRST.items() if name.endswith(f"/{ending}")), None)
        if words is not None:
            of = name.removeprefix("eval/").split("/")[0]
            told.append(
                (list(_FIRST.values()).index(words), "" if of in _TASKS else f"{of} ", f"{words} {value:.1f} %")
            )
    return ", ".join(f"{of}{said}" for _, of, said in sorted(told, key=lambda one: (one[1], one[0])))


_TASKS = ("zero_shot", "retrieval", "winoground", "winogavil")
_FIRST = {
    "zero_shot/top1": "zero-shot top-1",
    "zero_shot/top5": "top-5",
    "zero_shot/mAP": "mAP",
    "retrieval/image_to_text/R@1": "image to text R@1",
    "retrieval/text_to_image/R@1": "text to image R@1",
    "winoground/group": "group score",
}


def _memory_gb(device: torch.device) -> float:
    """The most that was held at once: of the GPU's memory, else of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    found = Path("/proc/self/status")
    if not found.exists():
        return 0.0
    (line,) = [line for line in found.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024 / 1e9
