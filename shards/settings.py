"""What the settings of every stage are: frozen dataclasses whose fields say what they may be and what they are for.

    @settings
    class ImageSettings:
        size: Annotated[int, option("side to resize to", "PX", flag="--image-size", ge=1)] = 256

pydantic holds values against types and bounds when one is made. Command lines (`clipstill.options`) and what TOML files
may hold (`partial`) are derived from the same fields, so whatever can be set is said once. What does not fit is a
`UserError` that names the option. Nothing heavier than pydantic is imported.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from typing_extensions import TypedDict

from shards.errors import UserError

T = TypeVar("T")

_typed_dict: Any = TypedDict
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a field is written on a command line, where that does not follow from its name and type.

    `flag`: the option (of a field `per_host`, `--per-host`; of a switch that is on, `--no-NAME`). `metavar`: what its
    value is called. `split`: several values in one word, with commas. `none`: the word "none" is None. `words`: what
    its values are called. `off`: a second option and its help, which takes the empty value. `default`: the default in
    words, where the help text does not say it. `section`: the heading of this option and those after it. `path`: each
    value is a path or a URL.
    """

    flag: str = ""
    metavar: str | tuple[str, ...] | None = None
    split: bool = False
    none: bool = False
    words: Mapping[str, Any] | None = None
    off: tuple[str, str] | None = None
    default: bool = True
    section: str | None = None
    path: bool = False


_SPELLED = frozenset(field.name for field in fields(Spelling))


def option(about: str, metavar: str | tuple[str, ...] | None = None, **more: Any) -> Any:
    """A field that can be set: its help, how it is spelled (`Spelling`), and bounds as pydantic's `Field` has them."""
    limits = {name: value for name, value in more.items() if name not in _SPELLED}
    spelled = {name: value for name, value in more.items() if name in _SPELLED}
    extra: Any = {"spelling": Spelling(metavar=metavar, **spelled)}
    return Field(description=about, json_schema_extra=extra, **limits)


def spelling_of(field: FieldInfo) -> Spelling | None:
    """None of a field that no option sets."""
    extra = field.json_schema_extra
    return extra.get("spelling") if isinstance(extra, dict) else None  # type: ignore[return-value]


@dataclass(frozen=True)
class Known:
    """In `Annotated[str, Known(REGISTRY)]`: one of the names in it, looked up when a value is checked."""

    names: Iterable[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if value not in self.names:
            raise PydanticCustomError("unknown_name", "unknown")
        return value


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(kind: type[T]) -> type[T]:
    """A frozen dataclass that checks what it is made of. Raises `UserError` for a value that does not fit its field."""
    made: Any = validated_dataclass(kind, frozen=True, kw_only=True, config=_CONFIG)
    check = made.__init__

    def __init__(self: Any, **values: Any) -> None:
        try:
            check(self, **values)
        except ValidationError as error:
            raise refusal(error, made, values) from None

    made.__init__ = __init__
    return made  # type: ignore[no-any-return]


def fields_of(kind: Any) -> dict[str, FieldInfo]:
    """The fields of a settings class, by name."""
    found: dict[str, FieldInfo] = kind.__pydantic_fields__
    return found


def nested(field: FieldInfo) -> Any:
    """The settings class that a field holds one of, perhaps beside other things; None if it holds none."""
    return next((kind for kind in _branches(field.annotation) if hasattr(kind, "__pydantic_fields__")), None)


def make(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Settings from nested mappings, each of which holds some fields. Raises `UserError` for what does not fit."""
    given: dict[str, Any] = {}
    for name, field in fields_of(kind).items():
        inner = nested(field)
        if name in values:
            is_table = inner is not None and isinstance(values[name], dict)
            given[name] = make(inner, values[name], f"{prefix}{name}.") if is_table else values[name]
        elif field.is_required():
            raise UserError(f"{prefix}{name} is missing", do=f"Give {flag_of(name, field)}")
    return kind(**given, **{name: value for name, value in values.items() if name not in given})


def partial(kind: Any, without: Iterable[str] = ()) -> TypeAdapter[dict[str, Any]]:
    """What checks mappings that hold some of the fields of a settings class, and of those within it."""
    return TypeAdapter(_partial(kind, frozenset(without)))


def _partial(kind: Any, without: Set[str] = frozenset()) -> Any:
    hints: dict[str, Any] = {}
    for name, field in fields_of(kind).items():
        if name not in without:
            inner, hint = nested(field), field.annotation
            if inner is not None:
                hint = _partial(inner)
            elif field.metadata:
                hint = Annotated[(hint, *field.metadata)]  # type: ignore[assignment]
            hints[name] = hint
    made: Any = _typed_dict(kind.__name__, hints, total=False)
    made.__pydantic_config__ = _CONFIG
    return made


def flag_of(name: str, field: FieldInfo) -> str:
    """The option that sets a field; a word without dashes is what stands by its place alone."""
    spelling = spelling_of(field)
    if spelling is not None and spelling.flag:
        return spelling.flag
    return f"--{'no-' if field.default is True else ''}{name.replace('_', '-')}"


def refusal(error: ValidationError, kind: Any, values: Mapping[str, Any], where: str = "") -> UserError:
    """What to tell of the first value that does not fit. `where`: the file it stands in, whose keys are named then."""
    first = error.errors(include_url=False)[0]
    return _refusal(first["type"], [str(part) for part in first["loc"]], kind, values, where)


def _refusal(
    fault: str, at: Sequence[str], kind: Any, values: Mapping[str, Any], where: str, *, prefix: str = ""
) -> UserError:
    name, known = at[0], fields_of(kind)
    dotted = prefix + name
    if name not in known or (fault in {"extra_forbidden", "unexpected_keyword_argument"} and len(at) == 1):
        close = difflib.get_close_matches(name, known, n=1)
        do = f"The closest is {prefix}{close[0]}" if close else f"There are {', '.join(known)}"
        return UserError(f"{dotted} is no setting", where=where, do=do)
    field, inner = known[name], nested(known[name])
    if name not in values:
        return UserError(f"{dotted} is missing", where=where, do=f"Give {flag_of(name, field)}")
    if where and inner is not None:
        if not isinstance(values[name], dict):
            told = f"{dotted} is {values[name]!r}, a table must stand there"
            return UserError(told, where=where, do=f"Write [{dotted}]")
        return _refusal(fault, at[1:], inner, values[name], where, prefix=f"{dotted}.")
    has_option = spelling_of(field) is not None and inner is None
    called = flag_of(name, field) if has_option and not where else dotted
    value, kind, metadata = values[name], field.annotation, field.metadata
    if inner is None and at[1:] and isinstance(value, Mapping) and at[1] in value:
        # Of a table, the one value in it.
        called, value = f"{called}{'.' if where else ' '}{at[1]}", value[at[1]]
        kind, metadata = get_args(kind)[1], []
    return UserError(f"{called} is {value!r}, it must be {in_words(kind, metadata)}", where=where)


_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def in_words(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """What a value of this type must be, for people."""
    known = [one.names for one in metadata if isinstance(one, Known)]
    limits = [words for one in metadata for words in _limit(one)]
    inner, origin = get_args(annotation), get_origin(annotation)
    if known or origin is Literal:
        return f"one of {', '.join(map(str, known[0] if known else inner))}"
    if origin is Annotated:
        return in_words(inner[0], inner[1:])
    if origin in (Union, types.UnionType):
        said = " or ".join(in_words(one) for one in inner if one is not type(None))
    elif origin is tuple:
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} of "
        said = f"a list of {count}({in_words(inner[0])})"
    else:
        said = _WORDS.get(annotation, "a table")
    return f"{said}, {' and '.join(limits)}" if limits else said


def _limit(one: Any) -> Iterator[str]:
    for name, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
        if getattr(one, name, None) is not None:
            yield f"{words} {getattr(one, name)}"
    if getattr(one, "min_length", 0):
        yield f"at least {one.min_length}"


def choices_of(annotation: Any, metadata: Iterable[Any] = ()) -> list[str] | None:
    """The names that a value can have, if they can be listed."""
    for one in metadata:
        if isinstance(one, Known):
            return list(one.names)
    inner, origin = get_args(annotation), get_origin(annotation)
    if origin is Literal:
        return list(inner)
    if origin is Annotated:
        return choices_of(inner[0], inner[1:])
    if origin in (Union, types.UnionType, tuple):
        return next((found for one in inner if (found := choices_of(one)) is not None), None)
    return None


def _branches(annotation: Any) -> Iterator[Any]:
    """The types that a value can be of."""
    if get_origin(annotation) in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _branches(inner)
    elif get_origin(annotation) is Annotated:
        yield from _branches(get_args(annotation)[0])
    else:
        yield annotation
