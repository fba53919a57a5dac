"""What zero-shot classification chooses from: class names in templates, or prompts of each class's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import UserError
from shards.text import read_text

Template = str | Callable[[str], str]
"""A prompt with `{}` or `{c}` for the class name, or a function from the name to the prompt (open_clip's form)."""

PLACES = ("{}", "{c}")
_FORM = (
    'It must read {"classes": ["cat", ...], "templates": ["a photo of a {}", ...]}, or {"prompts": {"cat": ["a photo '
    'of a cat", ...], ...}}; either of classes and templates may be left to the set'
)
_CIFAR = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
CIFAR_TEMPLATES = tuple(
    template
    for article in ("a", "the")
    for template in (
        *(f"a {kind}photo of {article} {{}}." for kind in _CIFAR),
        *(f"a photo of {article} {size} {{}}." for size in ("small", "big")),
    )
)
"""The 18 prompts that CLIP was published with for CIFAR-10 and CIFAR-100."""


@dataclass(frozen=True)
class Prompts:
    """C classes by their names; the prompts of each, by `templates` or, where there are `own`, as they stand there."""

    names: tuple[str, ...]
    templates: tuple[Template, ...] = ()
    own: tuple[tuple[str, ...], ...] | None = None

    def texts(self) -> list[list[str]]:
        """The prompts of each class. Raises `UserError` if there are none, or a template has no place for the name."""
        if self.own is not None:
            return [list(prompts) for prompts in self.own]
        if not self.names or not self.templates:
            raise UserError(
                f"{len(self.names)} classes and {len(self.templates)} templates were given",
                where="zero-shot",
                do="Give at least one of each",
            )
        return [[filled(template, name) for template in self.templates] for name in self.names]

    def only(self, kept: Sequence[int]) -> Prompts:
        """Some of the classes, in this order."""
        own = None if self.own is None else tuple(self.own[at] for at in kept)
        return Prompts(tuple(self.names[at] for at in kept), self.templates, own)


@dataclass(frozen=True)
class ClassFile:
    """What a file of `--classes` says: names, templates, prompts by name; None where it leaves one to the set."""

    where: str
    names: tuple[str, ...] | None
    templates: tuple[str, ...] | None
    own: Mapping[str, tuple[str, ...]] | None

    def prompts(self, names: Sequence[str] | None = None, templates: Sequence[Template] | None = None) -> Prompts:
        """With the set's own names and templates where this file has none.

        Raises `UserError` if neither has them, or if prompts are missing for a class.
        """
        chosen = self.names if self.names is not None else names
        if chosen is None:
            raise UserError("neither this file nor the set names the classes", where=self.where, do=_FORM)
        if self.own is not None:
            absent = next((name for name in chosen if name not in self.own), None)
            if absent is not None:
                raise UserError(f"there are no prompts for the class {absent!r}", where=self.where, do="Add them")
            return Prompts(tuple(chosen), own=tuple(self.own[name] for name in chosen))
        used = self.templates if self.templates is not None else templates
        if used is None:
            raise UserError("neither this file nor the set has templates", where=self.where, do=_FORM)
        return Prompts(tuple(chosen), tuple(used))


def read_classes(path: str) -> ClassFile:
    """A JSON file with `classes` and `templates`, or one of them, or `prompts` of each class.

    Raises `UserError` if it holds anything else, none of either, or a template without a place for the class name.
    """
    try:
        data: Any = json.loads(read_text(path, "Give a file of classes and templates"))
    except ValueError as error:
        raise UserError(f"not readable as JSON ({error})", where=path, do=_FORM) from None
    known = {"classes", "templates", "prompts"}
    if not isinstance(data, dict) or not data or not data.keys() <= known or {"templates", "prompts"} <= data.keys():
        raise UserError("it is no object with classes and templates", where=path, do=_FORM)
    names, templates = (_texts(data[part], path) if part in data else None for part in ("classes", "templates"))
    check_templates(templates or (), path)
    own = None
    if "prompts" in data:
        if not isinstance(data["prompts"], dict) or not data["prompts"]:
            raise UserError("its prompts are no object of lists", where=path, do=_FORM)
        own = {name: _texts(prompts, path) for name, prompts in data["prompts"].items()}
        names = tuple(own) if names is None else names
    return ClassFile(path, names, templates, own)


def _texts(value: Any, path: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(
            "needs at least one class and one template, as strings, none of them blank", where=path, do=_FORM
        )
    return tuple(value)


def check_templates(templates: Sequence[Template], where: str) -> None:
    """Raise `UserError` for a template that has no place for the class name."""
    for template in templates:
        if isinstance(template, str) and not any(place in template for place in PLACES):
            raise _bare(template, where)


def filled(template: Template, name: str) -> str:
    """The prompt of a class. Raises `UserError` if a template has no place for the name."""
    if callable(template):
        return template(name)
    place = next((place for place in PLACES if place in template), None)
    if place is None:
        raise _bare(template, "zero-shot")
    return template.replace(place, name)


def _bare(template: str, where: str) -> UserError:
    return UserError(
        f"the template {template!r} has no {{}}", where=where, do="Write {} or {c} where the class name goes"
    )


def imagenet_names() -> tuple[str, ...]:
    """OpenAI's names of the 1000 classes, in the order of their wnids, from open_clip."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES  # noqa: PLC0415 - brings torch

    return tuple(IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[Template, ...]:
    """OpenAI's 80 templates, from open_clip."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES  # noqa: PLC0415 - brings torch

    return tuple(OPENAI_IMAGENET_TEMPLATES)
