"""What an evaluation set is, whatever its kind: images by place, and what is asked about them. Imports no torch."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from evaluation.prompts import ClassFile, Prompts
from evaluation.sets.files import Tree
from evaluation.settings import SetSettings
from evaluation.tasks import Task
from shards.errors import UserError, one_line


class Images(ABC):
    """The images of a set; read by several threads at once."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, at: int) -> bytes:
        """The encoded image at a place."""

    @abstractmethod
    def name(self, at: int) -> str:
        """What a message calls it."""

    def open(self, at: int) -> Image.Image:
        """The picture, RGB, as it is stored: evaluation turns none upright, as no published one does.

        Raises `UserError` if it cannot be decoded.
        """
        try:
            with Image.open(io.BytesIO(self.read(at))) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"the image cannot be decoded ({_without_addresses(one_line(str(error)))})",
                where=self.name(at),
                do="Fetch it again, or take it out of the set",
            ) from error


def _without_addresses(text: str) -> str:
    """Pillow names the object that it could not identify, which says nothing."""
    return re.sub(r" ?<[^>]* at 0x[0-9a-f]+>", "", text)


@dataclass
class EvaluationSet:
    """`name` as results call it; `tasks` by the name that their figures go by; `notes`: what a reader must know.

    `left_out`: it has captions, and retrieval is not wanted.
    """

    name: str
    images: Images
    tasks: Mapping[str, Task]
    notes: list[str] = field(default_factory=list)
    left_out: bool = False

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Place:
    """Where the user says that a set is: a tree of files, and the names in it; of a file its folder, and `file`."""

    url: str
    tree: Tree
    folders: frozenset[str]
    files: frozenset[str]
    file: str | None = None

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of set: a `module` with `fits(place) -> bool` and `open_set(place, settings) -> EvaluationSet`.

    `takes`: which of `SetSettings` it looks at; the others, if given, are refused.
    """

    about: str
    module: str
    takes: frozenset[str] = frozenset()


def check_labels(prompts: Prompts, labels: np.ndarray, where: str) -> None:
    """Raise `UserError` for class numbers beyond the classes, or where there is nothing to choose between."""
    count = len(prompts.names)
    if len(labels) and (labels.min() < 0 or labels.max() >= count):
        wrong = int(labels.max() if labels.max() >= count else labels.min())
        raise UserError(
            f"a label is {wrong}, and there are {count} class names (0 to {count - 1})",
            where=where,
            do="The names are of another set, or lines are missing: line n of them names class n",
        )
    if count < 2:
        raise UserError("there is one class only: whatever is said is right", where=where, do="Give all classes")
    if len(np.unique(labels)) < 2:
        only = prompts.names[int(labels[0])] if len(labels) else "none"
        raise UserError(
            f"all {len(labels)} images are of one class, {only!r}, of {count}",
            where=where,
            do="A part of a set that is sorted by class says nothing: give the whole, or a shuffled part",
        )


def refuse_sorted_as_text(names: tuple[str, ...], where: str) -> None:
    """Raise `UserError` if classes are numbers in the order 0, 1, 10, 2: the n-th is then not class n."""
    numbers = len(names) > 10 and all(re.fullmatch(r"\d+", name) for name in names)
    if numbers and list(names) == sorted(names) != sorted(names, key=int):
        raise UserError(
            f"the classes are numbers sorted as text ({', '.join(names[:4])}, ...)",
            where=where,
            do="Sort them as numbers: class n must stand at place n",
        )


def refuse_empty(count: int, where: str, what: str = "images") -> None:
    if not count:
        raise UserError(f"there are no {what}", where=where, do="Give a set that has some")


def chosen_prompts(
    given: ClassFile | None, names: Sequence[str] | None, templates: Sequence[object] | None, where: str, get: str
) -> Prompts:
    """The set's names and templates, or those of `--classes`. Raises `UserError` naming what neither has.

    `get`: where to get them.
    """
    if given is not None:
        return given.prompts(names, templates)  # type: ignore[arg-type]
    for found, what in ((names, "class names"), (templates, "templates")):
        if found is None:
            raise UserError(f"there are no {what}", where=where, do=get)
    return Prompts(tuple(names or ()), tuple(templates or ()))  # type: ignore[arg-type]


__all__ = [
    "EvaluationSet",
    "Images",
    "Kind",
    "Place",
    "SetSettings",
    "check_labels",
    "chosen_prompts",
    "refuse_empty",
    "refuse_sorted_as_text",
]
