"""Command lines from settings: an option for each field that has a help text, and settings from what was given."""

from __future__ import annotations

import argparse
import types
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from clipstill.parser import Parser
from shards.settings import choices_of, fields_of, flag_of, nested, spelling_of


def add_options(
    parser: Parser, kind: Any, *, only: Collection[str] = (), without: Collection[str] = (), overriding: bool = False
) -> None:
    """Add the options of a settings class, and of those within it, under the headings that its fields name.

    What is not given on the command line is not in the namespace either: defaults are the settings' own. `only`,
    `without`: of these fields, of all but these. `overriding`: the options stand beside a file that may say the same,
    so none is required, and a switch can be turned off too.
    """
    _add(parser, kind, set(only or fields_of(kind)) - set(without), overriding=overriding)


def _add(
    parser: Parser, kind: Any, wanted: Collection[str], *, overriding: bool, prefix: str = "", section: str = ""
) -> None:
    for name, field in fields_of(kind).items():
        spelling, inner = spelling_of(field), nested(field)
        if spelling is None:
            continue
        section = section if spelling.section is None else spelling.section
        if name not in wanted:
            continue
        if inner is not None:
            below = f"{prefix}{name}."
            _add(parser, inner, fields_of(inner), overriding=overriding, prefix=below, section=section)
        else:
            _add_option(parser.section(section), f"{prefix}{name}", flag_of(name, field), field, overriding)


def given(args: argparse.Namespace, kind: Any, prefix: str = "") -> dict[str, Any]:
    """What was given on the command line of the fields of a settings class, as `shards.settings.make` takes it."""
    values: dict[str, Any] = {}
    for name, field in fields_of(kind).items():
        inner, spelling, path = nested(field), spelling_of(field), f"{prefix}{name}"
        if inner is not None:
            if within := given(args, inner, f"{path}."):
                values[name] = within
        elif spelling is not None and hasattr(args, path):
            value = getattr(args, path)
            if spelling.split and isinstance(value, str):
                value = value.split(",")
            value = spelling.words[value] if spelling.words else value
            values[name] = tuple(value) if isinstance(value, list) else value
    return values


def _add_option(group: Any, path: str, flag: str, field: FieldInfo, overriding: bool) -> None:
    spelling = spelling_of(field)
    assert spelling is not None
    words: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
    kind, count = _leaf(field.annotation)
    if not flag.startswith("-"):
        words |= {"nargs": "*" if overriding else "+"} if count == "any" else {"nargs": "?"} if overriding else {}
        group.add_argument(path, metavar=flag, **words)
        return
    words |= {"dest": path, "required": field.is_required() and not overriding}
    if kind is bool and not spelling.words:
        if overriding:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **words)
        else:
            group.add_argument(flag, action="store_false" if field.default is True else "store_true", **words)
        return
    choices = list(spelling.words) if spelling.words else choices_of(field.annotation, field.metadata)
    words |= {"choices": choices} if choices else {"metavar": spelling.metavar or flag.lstrip("-").upper()}
    if kind in (int, float) and not spelling.split:
        words["type"] = number_or_none if spelling.none else kind
    if count == "any" and not spelling.split:
        words["action"] = "append"
    elif isinstance(count, int):
        words["nargs"] = count
    group.add_argument(flag, **words)
    if spelling.off:
        group.add_argument(
            spelling.off[0],
            dest=path,
            action="store_const",
            const=[],
            default=argparse.SUPPRESS,
            help=spelling.off[1],
        )


def number_or_none(text: str) -> float | None:
    return None if text == "none" else float(text)


def _help(field: FieldInfo) -> str:
    spelling = spelling_of(field)
    assert spelling is not None
    text, default = (field.description or "").replace("%", "%%"), field.default
    if spelling.words:
        default = next(word for word, value in spelling.words.items() if value == default)
    tells = default is not None and default != () and not isinstance(default, bool)
    if field.is_required() or field.default_factory or not tells or not spelling.default:
        return text
    shown = default if isinstance(default, tuple) else (default,)
    return f"{text} (default: {(',' if spelling.split else ' ').join(map(str, shown))})"


def _leaf(annotation: Any) -> tuple[Any, int | str | None]:
    """The type of one value, and how many there are: None, a number, or "any"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _leaf(inner[0])
    if origin in (Union, types.UnionType):
        return _leaf(next(one for one in inner if one is not type(None)))
    if origin is tuple:
        return _leaf(inner[0])[0], "any" if inner[-1] is Ellipsis else len(inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return str, "any"
    return annotation, None
