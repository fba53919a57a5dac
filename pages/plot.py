"""A chart as inline SVG that is as wide as its place, with text of its real size at any width.

Places across are shares of the width, heights are pixels. What is drawn of lines and areas lies in an inner SVG that is
stretched across, in units of its own (`WIDTH` across, `FINE` a pixel upright); strokes keep their width. Colours are
classes of the pages' style sheet: `c0` to `c5`, `good`, `bad`, `soft`, ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from pages.axis import Axis, Values

WIDTH, FINE = 5000, 10
TOP, BOTTOM = 8, 22
_NAME_HIGH, _NAME_WIDE = 14, 0.35
"""Pixels, and a share of the width, that a name beside a dot may take."""
_DOTS = 3000
"""Of more dots than this, not every plain one is drawn."""


class Plot:
    """A chart `height` pixels high, with the grid of its upright axis `up`; `svg` ends it."""

    def __init__(self, up: Axis, height: int = 190, bottom: int = BOTTOM) -> None:
        self._up, self._height, self._base = up, height, height - bottom
        self._parts: list[str] = []
        for share, label in up.ticks(4):
            y = self._base - share * (self._base - TOP)
            self.add(f'<line class="grid" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.add(f'<text class="up" x="-7" y="{y + 4:.1f}">{escape(label)}</text>')

    def y(self, values: Values) -> Values:
        """Pixels from above."""
        return np.asarray(self._base - self._up.at(values) * (self._base - TOP))

    def add(self, *parts: str) -> None:
        self._parts += parts

    def stretched(self, *paths: str) -> str:
        """Paths in units of the inner SVG."""
        box = f'viewBox="0 0 {WIDTH} {self._height * FINE}" preserveAspectRatio="none"'
        return f'<svg class="plot" {box} width="100%" height="{self._height}">{"".join(paths)}</svg>'

    def ticks(self, across: Axis, most: int) -> list[str]:
        """The texts below; every other one of many is left out where the page is narrow."""
        return [
            f'<text class="across{" fine" if place % 2 and most > 5 else ""}" x="{100 * share:.4g}%" '
            f'y="{self._height - 4}">{escape(label)}</text>'
            for place, (share, label) in enumerate(across.ticks(most))
        ]

    def mark(self, share: float, kind: str = "", said: str = "") -> str:
        """A dashed upright line; `said` is shown under the pointer."""
        place = f"{100 * share:.4g}%"
        ends = f'x1="{place}" x2="{place}" y1="{TOP}" y2="{self._base}"'
        title = f"<title>{escape(said)}</title>" if said else ""
        return f'<line class="mark {escape(kind)}" {ends}>{title}</line>'

    def hair(self) -> str:
        """The line under the pointer, for the page's script."""
        return f'<line class="hair" y1="{TOP}" y2="{self._base}"/>'

    def stairs(self, across: Axis, edges: Values, values: Values, look: str) -> str:
        """Steps of height `values` (n,) between `edges` (n + 1,), which ascend; `look` begins with `area` or `edge`."""
        x = np.rint(across.at(edges) * WIDTH).astype(np.int64).tolist()
        y = np.rint(self.y(values) * FINE).astype(np.int64).tolist()
        steps = "".join(f"V{height}H{right}" for height, right in zip(y, x[1:], strict=True))
        return f'<path class="{look}" d="M{x[0]} {self._base * FINE}{steps}V{self._base * FINE}"/>'

    def svg(self, label: str) -> Markup:
        """The chart; `label` is what it shows, for who cannot see it."""
        head = f'<svg class="chart" height="{self._height}" role="img" aria-label="{escape(label)}">'
        return Markup(head + "".join(self._parts) + "</svg>")


def histogram(
    across: Axis,
    series: Sequence[tuple[str, Values, Values]],
    label: str,
    *,
    marks: Sequence[tuple[float, str]] = (),
    say: Callable[[float], str] | None = None,
    most: int = 10,
    height: int = 190,
) -> Markup:
    """Each of `series` as steps, the first one below: a look as for `Plot.stairs`, edges (n + 1,), values (n,); n >= 0.

    `marks` are upright lines at values of `across`, with a word; `say` writes the values at the upright axis.
    """
    highest = max((float(values.max()) for _, _, values in series if len(values)), default=0.0)
    plot = Plot(Axis(0.0, 1.08 * highest or 1.0, say=say), height)
    drawn = [plot.stairs(across, edges, values, look) for look, edges, values in series if len(values)]
    plot.add(plot.stretched(*drawn))
    plot.add(*plot.ticks(across, most))
    for value, word in marks:
        share = min(max(float(across.at(np.array([value]))[0]), 0.0), 1.0)
        plot.add(plot.mark(share), *([_beside(share, TOP + 10, word, "")] if word else []))
    return plot.svg(label)


def dots(values: Values, odd: npt.NDArray[np.bool_], names: Sequence[str], middle: float, label: str) -> Markup:
    """One dot a value (n,), NaN left out; the odd ones in red, with the names of the first few; a line at `middle`."""
    known = np.flatnonzero(np.isfinite(values))
    thin = max(1, len(known) // _DOTS)
    drawn = [at for place, at in enumerate(known.tolist()) if place % thin == 0 or odd[at]]
    low, high = float(values[known].min()), float(values[known].max())
    room = max(high - low, 1e-4) * 0.12
    plot = Plot(Axis(low - room, high + room), 170, bottom=8)
    level, *heights = plot.y(np.array([middle, *values[drawn]])).tolist()
    plot.add(f'<line class="mark" x2="100%" y1="{level:.1f}" y2="{level:.1f}"/>')
    radius = 4.0 if len(known) <= 200 else 2.2
    placed = [(at, (at + 0.5) / len(values), y) for at, y in zip(drawn, heights, strict=True)]
    for at, share, y in sorted(placed, key=lambda dot: bool(odd[dot[0]])):
        place = f'cx="{100 * share:.4g}%" cy="{y:.1f}" r="{radius + odd[at]:g}"'
        title = f"<title>{escape(names[at])}: {values[at]:.4f}</title>"
        plot.add(f'<circle class="area {"bad" if odd[at] else "c0"}" {place}>{title}</circle>')
    plot.add(*[_beside(share, y + 4, names[at], "loud") for at, share, y in placed if odd[at]][:8])
    return plot.svg(label)


class Dot(NamedTuple):
    """A point of a scatter plot: `look` colours it, a `loud` one is larger and has its name beside it."""

    x: float
    y: float
    name: str
    look: str
    loud: bool = False


def scatter(dots: Sequence[Dot], label: str, *, height: int = 300) -> Markup:
    """Dots over a logarithmic axis across, of which all `x` are positive; there is one at least."""
    x, y = (np.array(values, np.float64) for values in zip(*((dot.x, dot.y) for dot in dots), strict=True))
    low, high = float(y.min()), float(y.max())
    room = max(high - low, 1.0) * 0.1
    plot = Plot(Axis(low - room, high + room), height)
    across = Axis(float(x.min()) / 1.25, float(x.max()) * 1.25, log=True)
    plot.add(*plot.ticks(across, 8))
    placed = sorted(zip(dots, across.at(x).tolist(), plot.y(y).tolist(), strict=True), key=lambda one: one[0].loud)
    for dot, share, up in placed:
        place = f'cx="{100 * share:.4g}%" cy="{up:.1f}" r="{6 if dot.loud else 4}"'
        title = f"<title>{escape(dot.name)}: {dot.y:.2f} at {dot.x:,.4g}</title>"
        plot.add(f'<circle class="area {escape(dot.look)}" {place}>{title}</circle>')
    plot.add(*[_beside(share, up + 4, dot.name, "named" if dot.loud else "", 0.6) for dot, share, up in _apart(placed)])
    return plot.svg(label)


def _apart(placed: Sequence[tuple[Dot, float, float]]) -> list[tuple[Dot, float, float]]:
    """Those whose names do not run over another's, the loud ones first."""
    kept: list[tuple[Dot, float, float]] = []
    for one in sorted(placed, key=lambda each: not each[0].loud):
        free = all(abs(one[2] - other[2]) > _NAME_HIGH or abs(one[1] - other[1]) > _NAME_WIDE for other in kept)
        if free:
            kept.append(one)
    return kept


def _beside(share: float, y: float, word: str, kind: str, room: float = 0.8) -> str:
    """A word to the right of a place, or to its left from `room` on, where there is none."""
    anchor, shift = ("end", -9) if share > room else ("start", 9)
    return (
        f'<text class="{kind}" x="{100 * share:.4g}%" dx="{shift}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(word)}</text>"
    )
