"""Templates to pages. Every text is escaped, and the page's policy lets no script run but the kit's own."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pages.words import FILTERS


def render(package: str, template: str, **values: Any) -> bytes:
    """A page from a template in the folder of `package`, UTF-8. It extends `base.html.j2`."""
    return _environment(package).get_template(template).render(values).encode()


@cache
def _environment(package: str) -> Environment:
    # Kept: compiling the templates takes a quarter of a second, which a run would pay at every checkpoint.
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("pages", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    script = environment.get_template("script.html.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"script": script, "digest": digest}
    return environment
