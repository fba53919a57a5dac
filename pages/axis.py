"""One axis of a chart: which values it spans, where they lie on it, and a handful of round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_UNITS = ((2e9, 1e9, "G"), (2e6, 1e6, "M"), (1e4, 1e3, "k"))
"""From where on an axis counts in billions, millions or thousands."""
_SPAN = 0.02
"""An axis spans at least this share of its values: what hardly changes looks so, and its ticks stay short."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, which is more; of a logarithmic one both are positive. `say` writes one tick, where all of
    them together should not be counted in one unit.
    """

    low: float
    high: float
    log: bool = False
    say: Callable[[float], str] | None = None

    @classmethod
    def around(cls, values: Values, *, log: bool) -> Axis:
        """With room above and below `values`, all finite and on a logarithmic axis positive; there may be none."""
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
        if log:
            return cls(*((low / 1.1, high * 1.1) if high > low * (1 + 1e-6) else (low / 2, high * 2)), log=True)
        most = max(abs(low), abs(high))
        # Rounding of what never changes is no range.
        room = max((high - low) * 0.06, (_SPAN * most - (high - low)) / 2)
        room = room if high - low > 1e-6 * most else most * 0.1 or 1.0
        # What is not negative begins at 0, unless that would flatten it.
        return cls(0.0 if 0 <= low < 0.4 * high else low - room, high + room)

    def at(self, values: Values) -> Values:
        """Where `values` lie: 0 at the beginning, 1 at the end."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        return np.asarray(((np.log(values) if self.log else values) - low) / (high - low))

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """At most `most` + 1 round values, of a logarithmic axis powers of ten: where each lies, and its text."""
        found = _decades(self.low, self.high, most) if self.log else []
        found = found if len(found) > 1 else _round_values(self.low, self.high, most)
        found = [value for value in found if value > 0] if self.log else found
        said = [self.say(value) for value in found] if self.say else say_ticks(found)
        return list(zip(self.at(np.array(found)).tolist(), said, strict=True))


def _decades(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with 2 and 5 between them if they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // (most + 1)))
    fine = (1, 2, 5) if last - first <= 2 else (1,)
    candidates = [factor * 10.0**power for power in range(first, last + 1, every) for factor in fine]
    return [value for value in candidates if low <= value <= high]


def _round_values(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round values from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.9g}") + 0.0 for number in range(first, last + 1)]


def say_ticks(values: Sequence[float]) -> list[str]:
    """Round values in as few characters as it takes, in one unit: 0, 5k, 10k; 5e−5."""
    most = max((abs(value) for value in values), default=0.0)
    unit, name = next(((unit, name) for start, unit, name in _UNITS if most >= start), (1.0, ""))
    return [_in_unit(value / unit) + (name if value else "") for value in values]


def _in_unit(value: float) -> str:
    text = f"{value:g}"
    if "e" in text:
        digits, _, power = text.partition("e")
        text = f"{digits}e{int(power)}"
    return text.replace("-", "−")
