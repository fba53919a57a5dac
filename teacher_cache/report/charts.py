"""Small charts as inline SVG, in the page's colours: they stand in its style sheet as `.own`, `.other`, `.odd`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_WIDTH, _LEFT, _BOTTOM, _TOP = 1000, 52, 24, 10
_BARS = (20, 100)
_DOTS = 3000
"""Of more shards than this, not every one that is like the others is drawn."""

Values = npt.NDArray[np.float64]


def histogram(
    edges: Values, own: npt.NDArray[np.int64], other: npt.NDArray[np.int64], marks: Sequence[tuple[float, str]]
) -> str:
    """Counts `own` as bars and `other` as an outline, each scaled to its total; `marks` are upright lines with a word.

    Only the part of the axis that holds counts is drawn, in 20 to 100 bars: the more counts, the finer.
    """
    used = np.flatnonzero(own + other)
    bars = int(np.clip(2 * math.sqrt(own.sum()), *_BARS))
    step = max(1, -(-(used[-1] + 1 - used[0]) // bars))
    first = used[0] // step * step
    stop = min(len(own), first + -(-(used[-1] + 1 - first) // step) * step)
    starts = np.arange(first, stop, step)
    shares = [np.add.reduceat(counts[:stop], starts) / max(int(counts.sum()), 1) for counts in (own, other)]
    low, high = float(edges[first]), float(edges[min(starts[-1] + step, len(edges) - 1)])
    chart = _Chart((low, high), (0, float(max(share.max() for share in shares)) * 1.08), 240, "share")
    sides = [chart.x(float(edge)) for edge in [*edges[starts], high]]
    for left, right, share in zip(sides, sides[1:], shares[0], strict=False):
        height = chart.y(0) - chart.y(float(share))
        if share:
            size = f'width="{max(right - left - 0.6, 0.6):.1f}" height="{height:.1f}"'
            chart.add(f'<rect class="own" x="{left:.1f}" y="{chart.y(float(share)):.1f}" {size}/>')
    if other.any():
        line = f"M{sides[0]:.1f},{chart.y(0):.1f}"
        for left, right, share in zip(sides, sides[1:], shares[1], strict=False):
            line += f"L{left:.1f},{chart.y(float(share)):.1f}L{right:.1f},{chart.y(float(share)):.1f}"
        chart.add(f'<path class="other" d="{line}L{sides[-1]:.1f},{chart.y(0):.1f}"/>')
    for value, word in marks:
        at = min(max(chart.x(value), _LEFT), _WIDTH)
        anchor = "end" if at > _WIDTH - 120 else "start"
        chart.add(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{chart.y(0):.1f}"/>')
        chart.add(
            f'<text x="{at + (-5 if anchor == "end" else 5):.1f}" y="{_TOP + 10}" text-anchor="{anchor}">{word}</text>'
        )
    return chart.svg()


def dots(values: Values, odd: npt.NDArray[np.bool_], names: Sequence[int], middle: float) -> str:
    """One dot a shard, NaN left out; the odd ones in red, with the numbers of the first few; a line at `middle`."""
    known = np.flatnonzero(np.isfinite(values))
    thin = max(1, len(known) // _DOTS)
    drawn = [at for place, at in enumerate(known.tolist()) if place % thin == 0 or odd[at]]
    low, high = float(values[known].min()), float(values[known].max())
    room = max(high - low, 1e-4) * 0.12
    chart = _Chart((-0.5, len(values) - 0.5), (low - room, high + room), 170, "value", upright=False)
    level = chart.y(middle)
    chart.add(f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH}" y1="{level:.1f}" y2="{level:.1f}"/>')
    radius = 4 if len(known) <= 200 else 2.2
    for at in sorted(drawn, key=lambda at: bool(odd[at])):
        place = f'cx="{chart.x(at):.1f}" cy="{chart.y(float(values[at])):.1f}"'
        label = f"<title>{names[at]:05d}: {values[at]:.4f}</title>"
        chart.add(f'<circle class="{"odd" if odd[at] else "own"}" {place} r="{radius + odd[at]:g}">{label}</circle>')
    for at in [at for at in drawn if odd[at]][:8]:
        x, y = chart.x(at), chart.y(float(values[at]))
        anchor, shift = ("end", -9) if x > _WIDTH - 80 else ("start", 9)
        chart.add(
            f'<text class="loud" x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{names[at]:05d}</text>'
        )
    return chart.svg()


class _Chart:
    """Axes with a handful of round ticks; `upright` draws those of x too."""

    def __init__(
        self, across: tuple[float, float], up: tuple[float, float], height: int, unit: str, upright: bool = True
    ) -> None:
        self._across, self._up, self._height = across, up, height
        self._base = height - (_BOTTOM if upright else 8)
        self._parts: list[str] = []
        ticks = _ticks(*up, 4)
        digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 3
        for value in ticks:
            y = self.y(value)
            text = f"{value:.{digits}f}" if unit == "value" else f"{100 * value:.3g} %"
            self.add(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.add(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for value in _ticks(*across, 10) if upright else []:
            self.add(f'<text x="{self.x(value):.1f}" y="{self._base + 17}" text-anchor="middle">{value:.3g}</text>')

    def x(self, value: float) -> float:
        low, high = self._across
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT)

    def y(self, value: float) -> float:
        low, high = self._up
        return self._base - (value - low) / (high - low) * (self._base - _TOP)

    def add(self, part: str) -> None:
        self._parts.append(part)

    def svg(self) -> str:
        return f'<svg viewBox="0 0 {_WIDTH + 8} {self._height}" role="img">{"".join(self._parts)}</svg>'


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round values from `low` to `high`."""
    rough = max(high - low, 1e-12) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) + 0.0 for number in range(first, math.floor(high / step + 1e-9) + 1)]
