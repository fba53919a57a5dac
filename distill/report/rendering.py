"""Templates to pages. Every text is escaped, and the page's policy lets no script run but its own."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from distill.report.words import say, say_hours


@cache
def _environment() -> Environment:
    # Kept: compiling the templates takes a quarter of a second, which a run would pay at every checkpoint.
    environment = Environment(
        loader=PackageLoader("distill.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"say": say, "say_hours": say_hours, "count": "{:,.0f}".format}
    return environment


def render(template: str, **values: Any) -> bytes:
    """A page from a template of this package, UTF-8."""
    environment = _environment()
    script = environment.get_template("script.html.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(script=script, digest=digest, **values).encode()
