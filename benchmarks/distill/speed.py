"""Steps of several kinds, taking turns: images a second, the share of plain training's, and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.distill.contenders import PLAIN, Contender, Kind, Student, contender
from benchmarks.distill.memory import peak_gb
from benchmarks.record import spread


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How long kinds of step are compared: `rounds` in which each takes `steps`, at this batch size.

    A turn begins with the few batches that were made while others had theirs: where the loader could fall behind,
    `steps` has to be many more.
    """

    batch_size: int
    rounds: int
    steps: int = 1


class SpeedBenchmark:
    """Contenders made once, measured in turns; `close` it. `beside`: the kind that the others are shares of."""

    def __init__(self, kinds: Mapping[str, Kind], student: Student, trial: Trial, beside: str = PLAIN) -> None:
        self._trial, self._beside = trial, beside
        self.contenders: dict[str, Contender] = {
            name: contender(kind, student, trial.batch_size) for name, kind in kinds.items()
        }

    def measure(self) -> dict[str, Any]:
        """Each kind's images a second, by round its share of plain training's (or of another kind's), and its memory.

        All take their turn once in every round, backwards in every other.
        """
        memory = {}
        for name, one in self.contenders.items():
            one.turn(1)
            memory[name] = peak_gb(one)
        images = self._trial.batch_size * self._trial.steps
        rates: dict[str, list[float]] = {name: [] for name in self.contenders}
        for number in range(self._trial.rounds):
            names = list(self.contenders)
            for name in names if number % 2 == 0 else reversed(names):
                rates[name].append(images / self.contenders[name].turn(self._trial.steps))
        share = "share_of_plain" if self._beside == PLAIN else "share_of_ordinary"
        kinds = {
            name: {
                "images_per_second": spread(values),
                share: spread([rate / other for rate, other in zip(values, rates[self._beside], strict=True)]),
                "memory_gb": memory[name],
            }
            for name, values in rates.items()
        }
        return {"batch_size": self._trial.batch_size, "steps_a_turn": self._trial.steps, "kinds": kinds}

    def close(self) -> None:
        """End the threads that make batches."""
        for one in self.contenders.values():
            one.close()
