"""Numbers as the pages say them, with a space that does not break before the unit."""

from __future__ import annotations

GLUE = "\N{NO-BREAK SPACE}"


def said_share(part: float, whole: float) -> str:
    """Per cent with one digit; what is less than a tenth of one but not nothing is said to be less."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.1f}{GLUE}%" if percent >= 0.1 or not part else f"<{GLUE}0.1{GLUE}%"


def said_span(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = round(seconds)
    for unit, smaller, size, part in (("d", "h", 86_400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{GLUE}{unit}{GLUE}{whole % size // part}{GLUE}{smaller}"
    return f"{seconds:.3g}{GLUE}s"


def said_size(size: float) -> str:
    """Bytes in decimal units, three digits."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g}{GLUE}{unit}"
