"""Numbers, settings and comparisons as a reader wants them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from markupsafe import Markup, escape

from shards.quantities import said_share, said_size, said_span

_ONE_OF = {"losses": "loss", "teachers": "teacher"}


def say(value: float | None) -> str:
    """A figure with four digits; whole numbers whole."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:#.4g}"


def say_hours(hours: float | None) -> str:
    """How long something took, in the largest unit that it fills: 15 s, 1.5 min, 3.2 h."""
    if hours is None:
        return "–"
    # What rounds to 60 of one unit is 1 of the next.
    seconds = 3600 * hours
    value, unit = (seconds, "s") if seconds < 59.5 else (60 * hours, "min") if seconds < 59.5 * 60 else (hours, "h")
    return f"{value:,.0f} {unit}" if value >= 9.95 else f"{round(value, 1):g} {unit}"


def millions(count: object) -> str:
    return f"{count / 1e6:.3g} M" if isinstance(count, int) else str(count)


def say_number(value: object) -> str:
    """Of a setting: as it was written, without a float's tail."""
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value)


def say_ratio(one: Mapping[str, float], other: Mapping[str, float]) -> str | None:
    """How many times `other` the figure `one` is, both with `median`, `low` and `high`; None within their spread.

    Where each median lies within the other's range a ratio would be noise, which is no news. That ranges touch at their
    ends is not enough: 125 to 210 is not the same as 207 to 379.
    """
    if one["low"] <= other["median"] <= one["high"] and other["low"] <= one["median"] <= other["high"]:
        return None
    return f"{one['median'] / other['median']:.2f}×"


def in_words(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested settings as pairs of a name in words and a value: `{"teachers": [{"logit_scale": 1}]}` gives
    `teacher 1 logit scale`. Objects and lists without content are left out.
    """
    for name, value in settings.items():
        words = f"{prefix}{name.replace('_', ' ')}"
        one = f"{prefix}{_ONE_OF.get(name, name.replace('_', ' '))} "
        if isinstance(value, Mapping):
            yield from in_words(value, one)
        elif isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
            yield from in_words({str(place): part for place, part in enumerate(value, 1)}, one)
        elif value != []:
            yield words, value


def say_value(value: object) -> str:
    """A setting's value: yes, no, none; lists with commas; floats with what digits they need, 8 at most."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(
            f"({say_value(part)})" if isinstance(part, list | tuple) else say_value(part) for part in value
        )
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def with_options(text: str) -> Markup:
    """A text of ours in which command-line options are set as code, and not broken."""
    return Markup(re.sub(r"--[a-z-]+", r"<code>\g<0></code>", str(escape(text))))


FILTERS: dict[str, Callable[..., Any]] = {
    "count": "{:,.0f}".format,
    "share": said_share,
    "size": said_size,
    "span": said_span,
    "say": say,
    "say_hours": say_hours,
    "options": with_options,
}
"""What templates may call."""
