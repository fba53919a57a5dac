"""Read what zero-shot classification chooses from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards.errors import UserError

_FORM = 'It must read {"classes": ["cat", ...], "templates": ["a photo of a {}", ...]}'


def read_classes(path: str) -> tuple[list[str], list[str]]:
    """The class names and prompt templates of a JSON file, `{"classes": [...], "templates": [...]}`.

    Raises `UserError` if it holds anything else, none of either, or a template without `{}` for the class name.
    """
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        classes, templates = data["classes"], data["templates"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a file of classes ({type(error).__name__}: {error})", where=path, do=_FORM) from None
    for names in (classes, templates):
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UserError("needs at least one class and one template, as strings", where=path, do=_FORM)
    bare = next((template for template in templates if "{}" not in template), None)
    if bare is not None:
        raise UserError(f"the template {bare!r} has no {{}}", where=path, do="Write {} where the class name goes")
    return classes, templates
