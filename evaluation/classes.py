"""Read what zero-shot classification chooses from."""

from __future__ import annotations

import json
from typing import Any

from shards.errors import UserError
from shards.text import read_text

_FORM = 'It must read {"classes": ["cat", ...], "templates": ["a photo of a {}", ...]}'


def read_classes(path: str) -> tuple[list[str], list[str]]:
    """The class names and prompt templates of a JSON file, `{"classes": [...], "templates": [...]}`.

    Raises `UserError` if it holds anything else, none of either, or a template without `{}` for the class name.
    """
    try:
        data: Any = json.loads(read_text(path, "Give a file of classes and templates"))
    except ValueError as error:
        raise UserError(f"not readable as JSON ({error})", where=path, do=_FORM) from None
    if not isinstance(data, dict) or not {"classes", "templates"} <= data.keys():
        raise UserError("it is no object with classes and templates", where=path, do=_FORM)
    classes, templates = data["classes"], data["templates"]
    for names in (classes, templates):
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise UserError("needs at least one class and one template, as strings", where=path, do=_FORM)
    bare = next((template for template in templates if "{}" not in template), None)
    if bare is not None:
        raise UserError(f"the template {bare!r} has no {{}}", where=path, do="Write {} where the class name goes")
    return classes, templates
