"""JSON whose values must have the types of a dataclass's fields: one that is damaged is told, never half read."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def parsed(kind: type[T], text: str | bytes) -> T:
    """The object of the dataclass `kind` that a JSON text spells; nothing is converted but lists to tuples.

    Raises `ValueError` with one line for what is no JSON, or has a value of another type. Whether the text may name
    anything else is for `kind.__pydantic_config__` to say.
    """
    known: Any = kind
    adapter: TypeAdapter[T] = _adapter(known)
    try:
        try:
            found: T = adapter.validate_json(text, strict=True)
            return found
        except ValidationError as error:
            # It takes no half of a surrogate pair, which is what a path's byte that is no UTF-8 becomes.
            if "surrogate" not in str(error):
                raise
        found = adapter.validate_python(json.loads(text))
        return found
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
