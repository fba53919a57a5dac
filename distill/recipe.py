"""Recipes: published runs as TOML files, and how what a command is given overrides them.

A recipe holds fields of `RunSettings`, all but `shards`, `cache`, `out` and `recipe` (its own name), and its first
comment says what it is:

    student = "ViT-T-16"
    epochs = 32
    [losses]
    crd = 1                                       # a weight,
    fd = [[0, 0], [0.1, 2000]]                    # its course over the run,
    gd = {weight = 1e8, form = "reference"}       # or a weight (1) and the loss's options
    [optimiser]
    lr = 1e-3

`base = "NAME"` begins with another recipe's fields, which itself has no base. Whatever is said again replaces what was:
each field of `[optimiser]`, `[evaluation]` and `[prune]` on its own, `[losses]` as a whole.
"""

from __future__ import annotations

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from distill.pruning.settings import PruneSettings
from distill.settings import WARMUP_WITHIN, EvaluationSettings, LossTerm, OptimiserSettings, RunSettings
from shards import UserError

Recipe = dict[str, Any]
"""Fields of `RunSettings` by name: `losses` a dict of `LossTerm`, `optimiser`, `evaluation` dicts of their fields."""

_HERE = Path(__file__).parent / "recipes"
_GIVEN_APART = ("shards", "cache", "out", "recipe")
_NESTED: dict[str, type] = {"optimiser": OptimiserSettings, "evaluation": EvaluationSettings, "prune": PruneSettings}
_LENGTHS = {"steps", "epochs"}
_MISSING = {
    "shards": "SHARDS",
    "out": "--out",
    "student": "--student, a recipe that has one, or a model's folder as --initial",
    "evaluation.shards": "--eval",
    "prune.target": "--prune",
}


class RecipeFacts(NamedTuple):
    """A shipped recipe in a list: `about` is its first comment; `student` is None where it has to be given."""

    name: str
    about: str
    student: str | None
    losses: Mapping[str, LossTerm]


def list_recipes() -> list[RecipeFacts]:
    """The recipes that come with the package, by name."""
    found = []
    for path in sorted(_HERE.glob("*.toml")):
        recipe = load_recipe(path.stem)
        about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        found.append(RecipeFacts(path.stem, about, recipe.get("student"), recipe["losses"]))
    return found


def load_recipe(name: str) -> Recipe:
    """Read a recipe that comes with the package, by name, or any other by the path of its .toml file.

    Raises `UserError` naming file and key: no such recipe, an unknown field or loss, a value of another type.
    """
    path = _path(name)
    recipe = {**_read(path), "recipe": path.stem}
    base = recipe.pop("base", None)
    if base is None:
        return recipe
    if not isinstance(base, str):
        raise UserError(f"base is {base!r}, it must be the name of a recipe", where=str(path))
    beneath = _read(_path(base))
    if "base" in beneath:
        raise UserError(f"its base {base} has a base too", where=str(path), do="Name that one's base, and add the rest")
    return merged(beneath, recipe)


def merged(beneath: Mapping[str, Any], above: Mapping[str, Any]) -> Recipe:
    """The fields of both; where both have one, the upper's. A length in steps replaces one in epochs, and so on."""
    replaced = _LENGTHS if _LENGTHS & above.keys() else set()
    result = {name: value for name, value in beneath.items() if name not in replaced}
    for name, value in above.items():
        result[name] = {**result.get(name, {}), **value} if name in _NESTED else value
    return result


def settings_from(recipe: Mapping[str, Any], **given: Any) -> RunSettings:
    """The settings of a run: `given` before `recipe` before the defaults of `RunSettings`.

    `given` has the form of a recipe, and `shards`, `cache` and `out`. A recipe's warm-up is of its own number of steps;
    of any other length it takes a tenth at most. A folder that is `initial` is the student too if
    there is none: the run goes on from that model. Raises `UserError` for what is missing or wrong.
    """
    values = merged(recipe, given)
    its_own_steps = "steps" in recipe and not _LENGTHS & given.keys()
    if "warmup" in recipe.get("optimiser", {}) and "warmup" not in given.get("optimiser", {}) and not its_own_steps:
        values["optimiser"] = {"warmup_within": WARMUP_WITHIN, **values["optimiser"]}
    if values.get("initial") and Path(values["initial"]).is_dir():
        values.setdefault("student", values["initial"])
    for name, kind in _NESTED.items():
        if name in values:
            values[name] = kind(**_complete(kind, values[name], f"{name}."))
    return RunSettings(**_complete(RunSettings, values))


def _complete(kind: type, values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    for field in fields(kind):
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in values:
            raise UserError(f"{prefix}{field.name} is missing", do=f"Give {_MISSING[prefix + field.name]}")
    return values


def _path(name: str) -> Path:
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UserError("there is no such recipe", where=name, do="Give the path of a .toml file")
        return path
    known = sorted(path.stem for path in _HERE.glob("*.toml"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        do = f"The closest are {', '.join(close)}" if close else f"There are {', '.join(known)}, or the path of a .toml"
        raise UserError(f"there is no recipe {name!r}", where="recipe", do=do)
    return _HERE / f"{name}.toml"


def _read(path: Path) -> Recipe:
    """A file's fields, with `base` if it has one, each of the type that `RunSettings` wants."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"not readable as TOML: {error}", where=str(path)) from None
    for name in _GIVEN_APART:
        if name in raw:
            raise UserError(f"{name} has no place in a recipe", where=str(path), do=f"Give --{name} to the command")
    recipe: Recipe = {"base": raw.pop("base")} if "base" in raw else {}
    hints = get_type_hints(RunSettings)
    for name, value in raw.items():
        _check_known(name, [hint for hint in hints if hint not in _GIVEN_APART], path)
        if name == "losses":
            recipe[name] = {loss: _term(loss, given, path) for loss, given in _table(name, value, path).items()}
        elif name in _NESTED:
            recipe[name] = _nested(name, value, path)
        else:
            recipe[name] = _fitted(value, hints[name], name, path)
    return recipe


def _nested(name: str, value: Any, path: Path) -> dict[str, Any]:
    hints = get_type_hints(_NESTED[name])
    found = {}
    for key, inner in _table(name, value, path).items():
        _check_known(key, list(hints), path, f"{name}.")
        found[key] = _fitted(inner, hints[key], f"{name}.{key}", path)
    return found


def _term(loss: str, value: Any, path: Path) -> LossTerm:
    options = dict(value) if isinstance(value, dict) else {"weight": value}
    weight = _fitted(options.pop("weight", 1.0), get_type_hints(LossTerm)["weight"], f"losses.{loss}", path)
    term = LossTerm(weight=weight, options=options)
    try:
        term.check(loss)
    except UserError as error:
        raise UserError(f"losses.{loss}: {error.problem}", where=str(path), do=error.do) from None
    return term


def _table(name: str, value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{name} is {value!r}, a table must stand there", where=str(path), do=f"Write [{name}]")
    return value


def _check_known(name: str, known: list[str], path: Path, prefix: str = "") -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        do = f"The closest is {prefix}{close[0]}" if close else f"There are {', '.join(known)}"
        raise UserError(f"{prefix}{name} is no field of a recipe", where=str(path), do=do)


def _fitted(value: Any, hint: Any, key: str, path: Path) -> Any:
    """`value` as the type that a field is declared with; TOML has lists where we have tuples."""
    fitted = _fit(value, hint)
    if fitted is _MISFIT:
        raise UserError(f"{key} is {value!r}, it must be {_in_words(hint)}", where=str(path))
    return fitted


_MISFIT = object()


def _fit(value: Any, hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return next((got for got in (_fit(value, each) for each in inner) if got is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if value in inner else _MISFIT
    if origin is tuple:
        return _fit_list(value, inner) if isinstance(value, list) else _MISFIT
    if hint is float and type(value) is int:
        return float(value)
    return value if type(value) is hint else _MISFIT


def _fit_list(values: list[Any], inner: tuple[Any, ...]) -> Any:
    hints = [inner[0]] * len(values) if inner[-1] is Ellipsis else list(inner)
    if len(hints) != len(values):
        return _MISFIT
    parts = tuple(_fit(part, each) for part, each in zip(values, hints, strict=True))
    return _MISFIT if any(part is _MISFIT for part in parts) else parts


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(each) for each in inner if each is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is tuple:
        count = "" if inner[-1] is Ellipsis else f"{len(inner)} of "
        return f"a list of {count}({_in_words(inner[0])})"
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return words.get(hint, str(hint))
