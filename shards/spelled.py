"""Settings as the words of a command line, the inverse of `clipstill.options`: what differs from the defaults alone."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from shards.credentials import without_credentials
from shards.errors import UserError
from shards.settings import Spelling, fields_of, flag_of, nested, spelling_of
from shards.storage import Folder


def words_of(settings: Any, *, without: Collection[str] = ()) -> list[str]:
    """The words that ask for these settings, wherever they are said: local paths are absolute. What stands by its
    place comes first.
    """
    known = fields_of(type(settings))
    placed: list[str] = []
    flagged: list[str] = []
    for name, value in _chosen(settings).items():
        field, spelling = known[name], spelling_of(known[name])
        if spelling is None or name in without:
            continue
        if nested(field) is not None:
            flagged += words_of(value)
        elif flag_of(name, field).startswith("-"):
            flagged += _option(flag_of(name, field), value, spelling)
        else:
            placed += _texts(value, spelling)
    return [*placed, *flagged]


def absolute(path: str) -> str:
    """A path or URL as it is understood anywhere; without credentials, which nobody shall find in a file."""
    return without_credentials(path) if "://" in path else Folder(path).url


def _chosen(settings: Any) -> dict[str, Any]:
    """The fields that must be said for all to be as they are."""
    kind = type(settings)
    values = {name: getattr(settings, name) for name in fields_of(kind)}
    chosen = {
        name: value
        for name, value in values.items()
        if value != fields_of(kind)[name].get_default(call_default_factory=True)
    }
    for name in list(chosen):
        # Some defaults depend on other fields.
        fewer = {other: value for other, value in chosen.items() if other != name}
        with suppress(UserError):
            if kind(**fewer) == settings:
                chosen = fewer
    return chosen


def _option(flag: str, value: Any, spelling: Spelling) -> list[str]:
    if spelling.off is not None and not value:
        return [spelling.off[0]]
    if isinstance(value, bool) and not spelling.words:
        return [flag]
    texts = _texts(value, spelling)
    texts = [",".join(texts)] if spelling.split else texts
    return [word for text in texts for word in ([f"{flag}={text}"] if text.startswith("-") else [flag, text])]


def _texts(value: Any, spelling: Spelling) -> list[str]:
    if spelling.words:
        return [next(word for word, meant in spelling.words.items() if meant == value)]
    texts = ["none" if one is None else str(one) for one in (value if isinstance(value, tuple) else (value,))]
    return [absolute(text) if spelling.path else without_credentials(text) for text in texts]
