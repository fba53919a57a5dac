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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from distill.loss_term import LossTerm
from distill.settings import WARMUP_WITHIN, RunSettings
from shards.errors import UserError
from shards.settings import fields_of, make, nested, partial, refusal
from shards.text import read_text

Recipe = dict[str, Any]
"""Fields of `RunSettings` by name: `losses` a dict of `LossTerm`, `optimiser`, `evaluation` dicts of their fields."""

_HERE = Path(__file__).parent / "recipes"
_GIVEN_APART = ("shards", "cache", "out", "recipe")
_NESTED = {name for name, field in fields_of(RunSettings).items() if nested(field)}
_LENGTHS = {"steps", "epochs"}
_DO = "Give the path of a .toml file, or a recipe's name"


class RecipeFacts(NamedTuple):
    """A shipped recipe in a list: `about` is its first comment; `student` is None where it has to be given."""

    name: str
    about: str
    student: str | None
    losses: tuple[str, ...]


def list_recipes() -> list[RecipeFacts]:
    """The recipes that come with the package, by name."""
    found = []
    for path in sorted(_HERE.glob("*.toml")):
        recipe = _toml(path)
        recipe = merged(_toml(_path(recipe["base"])) if "base" in recipe else {}, recipe)
        about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        found.append(RecipeFacts(path.stem, about, recipe.get("student"), tuple(recipe["losses"])))
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
    return make(RunSettings, values)


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
    raw = _toml(path)
    for name in _GIVEN_APART:
        if name in raw:
            raise UserError(f"{name} has no place in a recipe", where=str(path), do=f"Give --{name} to the command")
    apart = {"base": raw.pop("base")} if "base" in raw else {}
    losses = raw.pop("losses", {})
    if not isinstance(losses, dict):
        raise UserError(f"losses is {losses!r}, a table must stand there", where=str(path), do="Write [losses]")
    if losses:
        apart["losses"] = {loss: _term(loss, given, path) for loss, given in losses.items()}
    try:
        return {**apart, **partial(RunSettings, [*_GIVEN_APART, "losses"]).validate_python(raw)}
    except ValidationError as error:
        raise refusal(error, RunSettings, raw, str(path)) from None


def _toml(path: Path) -> Recipe:
    """What stands in a file; lists are tuples, as settings have them."""
    try:
        return {name: _frozen(value) for name, value in tomllib.loads(read_text(path, _DO)).items()}
    except ValueError as error:
        raise UserError(f"not readable as TOML: {error}", where=str(path), do=_DO) from None


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _frozen(inner) for name, inner in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _term(loss: str, value: Any, path: Path) -> LossTerm:
    options = dict(value) if isinstance(value, dict) else {"weight": value}
    try:
        term = LossTerm(weight=options.pop("weight", 1.0), options=options)
        term.check(loss)
    except UserError as error:
        raise UserError(f"losses.{loss}: {error.problem}", where=str(path), do=error.do) from None
    return term
