"""Curves over steps, thinned to what can be seen, with the values for the page's script that shows them.

`.s0`, `.s1`, ... of the style sheet are the looks of lines, `.mark` that of events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pages.axis import Axis, Values
from pages.plot import FINE, WIDTH, Plot

_DOTS = 60
"""A curve of at most this many points shows each of them."""
_MEANS = 150
"""Where several curves lie over each other, so many means of each stand out from what was logged."""
_SEEN = 1000
"""Marks of a kind that are nearer to each other than this fraction of the width are drawn as one."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """`steps` (n,) ascending and `values` (n,), float64; what is not finite is a gap. `look` numbers its style.

    `across(axis, steps)` says where steps lie on an axis, or None if nobody knows; as they are unless given.
    """

    look: int
    steps: Values
    values: Values
    across: Callable[[str, Values], Values | None] = lambda _, steps: steps


class Event(NamedTuple):
    """What happened at a step: an upright line in every chart."""

    step: float
    kind: str
    text: str


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


def curves(lines: Sequence[Line], frame: Frame, label: str, *, log: bool = False, wide: bool = False) -> Markup:
    """The lines over each axis of `frame`, each in a group `by-AXIS`; the page's style shows one of them.

    On a logarithmic axis what is not positive is a gap. The first group's paths carry the values as text, for the
    script that shows them. Long curves of several lines are drawn faint, each with its course of means over a 150th of
    it: what one sees of noise is its extremes, and they would hide each other.
    """
    drawn = []
    for place, line in enumerate(lines):
        has_means = len(lines) > 1 and len(line.steps) > 2 * _MEANS
        drawn.append(_Drawn(place, line, frame.points, log, kind="line faint" if has_means else "line"))
        drawn += [_Drawn.of_means(place, line, log)] if has_means else []
    drawn.sort(key=lambda entry: entry.kind == "mean")
    plot = Plot(Axis.around(np.concatenate([entry.values for entry in drawn]), log=log), 280 if wide else 190)
    for axis, end in frame.extents.items():
        across = Axis(0.0, end if end > 0 else 1.0)
        plot.add(f'<g class="axis by-{axis}">', *plot.ticks(across, 10 if wide else 5))
        plot.add(*_marks(plot, frame.events, across) if axis == "steps" else ())
        paths: list[str] = []
        for entry in drawn:
            known = entry.line.across(axis, entry.steps)
            if known is not None:
                first = axis == next(iter(frame.extents))
                paths += entry.paths(across.at(known), plot.y(entry.values), with_values=first)
        plot.add(plot.stretched(*paths), "</g>")
    plot.add(plot.hair(), plot.stretched('<path class="spots"/>'))
    return plot.svg(label)


class _Drawn:
    """The points of a line that are drawn."""

    def __init__(self, place: int, line: Line, most: int, log: bool, kind: str = "line") -> None:
        values = np.where(line.values > 0, line.values, np.nan) if log else line.values
        kept = thin(values, most)
        gaps = np.cumsum(~np.isfinite(values))
        self.place, self.line, self.kind = place, line, kind
        self.steps, self.values = line.steps[kept], values[kept]
        self._broken = np.r_[True, np.diff(gaps[kept]) > 0][: len(kept)]

    @classmethod
    def of_means(cls, place: int, line: Line, log: bool) -> _Drawn:
        """The means lie where they would on the axis: of logarithms on one that is."""
        steps, values = line.steps, line.values
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(values) if log else values
        known = np.isfinite(values)
        starts = np.unique(np.linspace(0, len(steps), _MEANS, endpoint=False).astype(np.int64))
        counts = np.add.reduceat(known, starts, dtype=np.float64)
        with np.errstate(invalid="ignore"):
            means = np.add.reduceat(np.where(known, values, 0.0), starts) / counts
        means = np.exp(means) if log else means
        places = np.add.reduceat(steps, starts) / np.diff(np.r_[starts, len(steps)])
        return cls(place, replace(line, steps=places, values=means), _MEANS, log, kind="mean")

    def paths(self, across: Values, y: Values, *, with_values: bool) -> list[str]:
        """`across` in shares of the chart's width, `y` in pixels."""
        points = np.rint(np.stack([across * WIDTH, y * FINE], 1)).astype(np.int64)
        moves = np.diff(points, axis=0, prepend=0)
        # A curve piece of one point needs a line of no length to be seen.
        text = "".join(
            f"M{point[0]} {point[1]}l0 0" if broken else f" {move[0]} {move[1]}"
            for point, move, broken in zip(points.tolist(), moves.tolist(), self._broken.tolist(), strict=True)
        )
        look = self.line.look
        if self.kind == "mean":
            return [f'<path class="mean s{look}" d="{text}"/>']
        data = ""
        if with_values:
            steps = " ".join(f"{step:.12g}" for step in self.steps.tolist())
            data = f' data-steps="{steps}" data-values="{" ".join(f"{value:.6g}" for value in self.values.tolist())}"'
        named = f'class="{self.kind} s{look}" data-place="{self.place}" data-run="{look}"'
        paths = [f'<path {named}{data} d="{text}"/>']
        if len(points) <= _DOTS:
            dots = "".join(f"M{point[0]} {point[1]}h0" for point in points.tolist())
            paths.append(f'<path class="dots s{look}" d="{dots}"/>')
        return paths


def _marks(plot: Plot, events: Sequence[Event], across: Axis) -> list[str]:
    """One line for the events of a kind that fall on the same place."""
    found: dict[tuple[int, str], str] = {}
    for event in events:
        share = float(across.at(np.array([event.step]))[0])
        said = f"step {event.step:,.0f}, {event.kind}: {event.text}"
        found.setdefault((round(_SEEN * share), event.kind), plot.mark(share, event.kind, said))
    return list(found.values())
