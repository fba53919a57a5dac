"""Curves as inline SVG, in the page's colours: `.s0`, `.s1`, ... are the runs', `.mark` those of events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from distill.run_folder import Event, Series, Values

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 8, 22
_FINE = 10
"""Coordinates are whole tenths of a pixel, relative to the point before: half the bytes."""
_DOTS = 60
"""A curve of at most this many points shows each of them."""
_MEANS = 150
"""Where several curves lie over each other, so many means of each stand out from what was logged."""

_UNITS = ((2e9, 1e9, "G"), (2e6, 1e6, "M"), (1e4, 1e3, "k"))
"""From where on an axis counts in billions, millions or thousands."""
_SPAN = 0.02
"""An axis spans at least this share of its values: what hardly changes looks so, and its ticks stay short."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run's curve, or one of several of a run; `run` is also the number of its colour and dashes.

    `across(axis, steps)` says where steps lie on an axis, or None if nobody knows.
    """

    run: int
    series: Series
    across: Callable[[str, Values], Values | None]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the charts of one page share: `extents` is the end of each axis across, all begin at 0."""

    extents: Mapping[str, float]
    points: int = 1000
    events: Sequence[Event] = field(default_factory=tuple)


def thin(values: Values, most: int) -> Indices:
    """Which of `values` (n,) to draw, ascending: all finite ones, or of more than `most` the extremes.

    Of each of `most` / 2 - 1 stretches the lowest and the highest, and of the whole the first and the last.
    """
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) <= most:
        return finite
    stretches = most // 2 - 1
    width = -(-len(values) // stretches)
    padded = np.full(stretches * width, np.nan)
    padded[: len(values)] = values
    rows = padded.reshape(stretches, width)
    known = np.isfinite(rows)
    ends = (np.where(known, rows, np.inf).argmin(1), np.where(known, rows, -np.inf).argmax(1))
    starts = np.arange(stretches) * width
    kept = np.unique(np.concatenate([starts + ends[0], starts + ends[1], finite[[0, -1]]]))
    drawn: Indices = kept[np.isfinite(padded[kept])]
    return drawn


def chart(lines: Sequence[Line], frame: Frame, *, log: bool, width: int = 490, height: int = 190) -> Markup:
    """The curves over each axis of `frame`, each in a group `by-AXIS`; the page's style shows one of them.

    What is not finite, and on a logarithmic axis what is not positive, is a gap. The first group's paths carry the
    values as text, for the script that shows them. Long curves of several runs are drawn faint, each with its course of
    means over a 150th of it: what one sees of noise is its extremes, and they would hide each other.
    """
    drawn = []
    for line in lines:
        has_means = len(lines) > 1 and len(line.series.steps) > 2 * _MEANS
        drawn.append(_Drawn(line, frame.points, log, kind="line faint" if has_means else "line"))
        drawn += [_Drawn.of_means(line, log)] if has_means else []
    drawn.sort(key=lambda entry: entry.kind == "mean")
    up = _Up(np.concatenate([entry.values for entry in drawn]), log, height)
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="up" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for y, label in up.ticks()
    ]
    room = width - _LEFT - _RIGHT
    for place, (axis, end) in enumerate(frame.extents.items()):
        scale = room / end if end > 0 else 0.0
        parts.append(f'<g class="axis by-{axis}">')
        ticks = _round_values(0, end, 5 if width < 600 else 10)
        for tick, label in zip(ticks, say_ticks(ticks), strict=True):
            x = _LEFT + tick * scale
            parts.append(f'<text class="across" x="{x:.1f}" y="{height - 4}" text-anchor="middle">{label}</text>')
        if axis == "steps":
            parts += _marks(frame.events, scale, height)
        parts.append(f'<g transform="scale({1 / _FINE:g})">')
        for entry in drawn:
            across = entry.line.across(axis, entry.steps)
            if across is not None:
                parts += entry.paths(_LEFT + across * scale, up.y(entry.values), with_values=place == 0)
        parts.append("</g></g>")
    parts.append('<line class="hair"/><path class="spots"/>')
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" data-top="{_TOP}" data-base="{up.base}">'
    return Markup(head + "".join(parts) + "</svg>")


class _Drawn:
    """The points of a line that are drawn."""

    def __init__(self, line: Line, most: int, log: bool, kind: str = "line") -> None:
        values = np.where(line.series.values > 0, line.series.values, np.nan) if log else line.series.values
        kept = thin(values, most)
        gaps = np.cumsum(~np.isfinite(values))
        self.line, self.kind = line, kind
        self.steps, self.values = line.series.steps[kept], values[kept]
        self._broken = np.r_[True, np.diff(gaps[kept]) > 0][: len(kept)]

    @classmethod
    def of_means(cls, line: Line, log: bool) -> _Drawn:
        """The means lie where they would on the axis: of logarithms on one that is."""
        steps, values = line.series
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(values) if log else values
        known = np.isfinite(values)
        starts = np.unique(np.linspace(0, len(steps), _MEANS, endpoint=False).astype(np.int64))
        counts = np.add.reduceat(known, starts, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            means = np.add.reduceat(np.where(known, values, 0.0), starts) / counts
        means = np.exp(means) if log else means
        places = np.add.reduceat(steps, starts) / np.diff(np.r_[starts, len(steps)])
        return cls(replace(line, series=Series(places, means)), _MEANS, log, kind="mean")

    def paths(self, x: Values, y: Values, *, with_values: bool) -> list[str]:
        points = np.rint(np.stack([x, y], 1) * _FINE).astype(np.int64)
        moves = np.diff(points, axis=0, prepend=0)
        # A curve piece of one point needs a line of no length to be seen.
        text = "".join(
            f"M{point[0]} {point[1]}l0 0" if broken else f" {move[0]} {move[1]}"
            for point, move, broken in zip(points.tolist(), moves.tolist(), self._broken.tolist(), strict=True)
        )
        run = self.line.run
        if self.kind == "mean":
            return [f'<path class="mean s{run}" d="{text}"/>']
        data = ""
        if with_values:
            steps = " ".join(f"{step:.12g}" for step in self.steps.tolist())
            data = f' data-steps="{steps}" data-values="{" ".join(f"{value:.6g}" for value in self.values.tolist())}"'
        paths = [f'<path class="{self.kind} s{run}" data-run="{run}"{data} d="{text}"/>']
        if len(points) <= _DOTS:
            dots = "".join(f"M{point[0]} {point[1]}h0" for point in points.tolist())
            paths.append(f'<path class="dots s{run}" d="{dots}"/>')
        return paths


class _Up:
    """The upright axis: which values it spans, and where they lie."""

    def __init__(self, values: Values, log: bool, height: int) -> None:
        self._log, self.base = log, height - _BOTTOM
        low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
        if log:
            low, high = (low / 1.1, high * 1.1) if high > low * (1 + 1e-6) else (low / 2, high * 2)
        else:
            most = max(abs(low), abs(high))
            # Rounding of what never changes is no range.
            room = max((high - low) * 0.06, (_SPAN * most - (high - low)) / 2)
            room = room if high - low > 1e-6 * most else most * 0.1 or 1.0
            # What is not negative begins at 0, unless that would flatten it.
            low, high = (0.0 if 0 <= low < 0.4 * high else low - room), high + room
        self._low, self._high = low, high

    def y(self, values: Values) -> Values:
        low, high = (math.log(self._low), math.log(self._high)) if self._log else (self._low, self._high)
        return self.base - ((np.log(values) if self._log else values) - low) / (high - low) * (self.base - _TOP)

    def ticks(self) -> list[tuple[float, str]]:
        found = _decades(self._low, self._high) if self._log else []
        found = found if len(found) > 1 else _round_values(self._low, self._high, 4)
        found = [value for value in found if value > 0] if self._log else found
        return list(zip(self.y(np.array(found)).tolist(), say_ticks(found), strict=True))


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them if they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // 5))
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


def _marks(events: Sequence[Event], scale: float, height: int) -> list[str]:
    """One dashed line for the events of a kind that fall on the same pixel."""
    found: dict[tuple[int, str], Event] = {}
    for event in events:
        found.setdefault((round(event.step * scale), event.kind), event)
    return [
        f'<line class="mark {escape(event.kind)}" x1="{_LEFT + at}" x2="{_LEFT + at}" y1="{_TOP}" '
        f'y2="{height - _BOTTOM}"><title>{escape(f"step {event.step:,.0f}, {event.kind}: {event.text}")}</title></line>'
        for (at, _), event in found.items()
    ]
