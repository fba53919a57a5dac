"""What a run's figures say while it trains: means for the log, and the signs that it goes wrong, named at once."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clip_models.precision import PRECISIONS
from distill.settings import RunSettings
from shards import UserError

_WINDOW = 20
"""Steps whose mean loss is compared: a single step's says little."""
_TRAIL = 5
_SKIPPED = 20
"""Steps in a row that fp16 may skip: the scaler halves its scale each time, and finds a good one in fewer."""
_NO_TERMS = ("loss", "grad_norm", "logit_scale")
"""Figures of a step that are no term of its loss."""


class Watch:
    """Means over the steps since the last log line; part of the checkpoint, so that resumed logs are the same.

    Figures are read one step late, so that the host never waits for the step that it has just begun. Every method
    raises `UserError` if a step made the weights useless: neither a log line nor a checkpoint is written of it.
    """

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        # With fp16 a gradient that is not finite is no failure: the scaler skips that step.
        self._vital = {"loss"} if PRECISIONS[settings.precision].scaled else {"loss", "grad_norm"}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._waiting: deque[Figures] = deque()
        self._norms: deque[float] = deque(maxlen=_TRAIL)
        self._losses: list[float] = []
        self._best: float | None = None
        self._least = 0.0
        self._active: list[str] = []
        self._skipped = 0
        self.last = 0.0

    def add(self, step: int, values: dict[str, Tensor], weights: Mapping[str, float]) -> None:
        """The figures of a step, 0-d tensors, made with these weights of the losses."""
        active = [name for name, weight in weights.items() if weight]
        if active != self._active:
            # Another loss: what was lowest before says nothing about it.
            self._fold()
            self._active, self._losses, self._best, self._least = active, [], None, 0.0
        self._waiting.append(Figures(step, values))
        while len(self._waiting) > 1:
            self._read(self._waiting.popleft())

    def _fold(self) -> None:
        while self._waiting:
            self._read(self._waiting.popleft())

    def _read(self, figures: Figures) -> None:
        step, numbers = figures.step, figures.numbers()
        broken = [name for name in numbers if name in self._vital and not math.isfinite(numbers[name])]
        if broken:
            raise self._not_finite(step, broken[0], numbers)
        for name, number in numbers.items():
            if math.isfinite(number):
                self._sums[name] = self._sums.get(name, 0.0) + number
                self._counts[name] = self._counts.get(name, 0) + 1
        self._norms.append(numbers["grad_norm"])
        self._skipped = 0 if math.isfinite(numbers["grad_norm"]) else self._skipped + 1
        if self._skipped == _SKIPPED:
            raise self._not_finite(step, "grad_norm", numbers)
        # Unweighted, since a weight that changes is no explosion.
        self._judge(step, sum(number for name, number in numbers.items() if name in self._active))

    def _judge(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) < _WINDOW:
            return
        mean = statistics.fmean(self._losses)
        self._losses = []
        limit = self._settings.explosion
        if limit and self._best is not None and mean > limit * self._best:
            raise UserError(
                f"the loss has exploded: the mean of its terms over steps {step - _WINDOW + 1} to {step} is "
                f"{mean:.4g}, the lowest before was {self._best:.4g}; the last gradient norms: {self._trail()}",
                where=self._settings.out,
                do=self._remedy(),
            )
        if self._best is None:
            # A loss that has all but vanished may grow tenfold and mean nothing.
            self._least = abs(mean) / 100
        self._best = max(self._least, mean if self._best is None else min(self._best, mean))

    def _not_finite(self, step: int, what: str, numbers: dict[str, float]) -> UserError:
        terms = [name for name, number in numbers.items() if not math.isfinite(number) and name not in _NO_TERMS]
        of = f" ({', '.join(terms)})" if terms else ""
        return NotFiniteError(
            f"{what} is {numbers[what]} at step {step}{of}; gradient norms of the steps before: {self._trail()}",
            where=self._settings.out,
            do=self._remedy(),
        )

    def _trail(self) -> str:
        return ", ".join(f"{norm:.3g}" for norm in self._norms) or "none"

    def _remedy(self) -> str:
        rate = self._settings.optimiser.lr
        return (
            f"Checkpoints are from before: lower the learning rate (now {rate:g}), a loss's weight or the logit scale, "
            "lengthen the warm-up, or use fp32"
        )

    def take(self) -> dict[str, float]:
        """The means, over the steps where each number was finite; begins the next interval."""
        self._fold()
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        self._sums, self._counts = {}, {}
        self.last = means["loss"]
        return means

    def state(self) -> dict[str, Any]:
        """What `restore` takes, JSON-able."""
        self._fold()
        state: dict[str, Any] = {"_sums": self._sums, "_counts": self._counts, "_losses": self._losses}
        state |= {"_best": self._best, "_least": self._least, "_active": self._active}
        state |= {"_skipped": self._skipped, "last": self.last}
        return state | {"_norms": list(self._norms)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._sums, self._counts = dict(state["_sums"]), dict(state["_counts"])
        self._losses, self._best, self._least = list(state["_losses"]), state["_best"], state["_least"]
        self._active, self._skipped, self.last = list(state["_active"]), state["_skipped"], state["last"]
        self._norms = deque(state["_norms"], _TRAIL)


class Figures:
    """A step's figures, 0-d, on their way from the device; reading them waits for that step and no later one."""

    def __init__(self, step: int, values: Mapping[str, Tensor]) -> None:
        self.step, self._names = step, list(values)
        device = next(iter(values.values())).device
        packed = torch.stack([value.detach().to(device, torch.float64) for value in values.values()])
        self._packed, self._event = packed, None
        if device.type == "cuda":
            self._packed = torch.empty(packed.shape, dtype=torch.float64, pin_memory=True)
            self._packed.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def numbers(self) -> dict[str, float]:
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._packed.tolist(), strict=True))


class NotFiniteError(UserError):
    """A loss or gradient that is not a number."""
