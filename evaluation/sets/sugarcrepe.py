"""SugarCrepe (Hsieh et al. 2023): JSON files of image, caption and negative caption, beside COCO's val2017.

Seven parts: `add_att`, `add_obj`, `replace_att`, `replace_obj`, `replace_rel`, `swap_att`, `swap_obj`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from evaluation.sets.base import EvaluationSet, Images, Place, SetSettings, refuse_empty
from evaluation.sets.files import Tree
from evaluation.tasks import Matching, Task
from shards.errors import UserError

_PART = re.compile(r"((?:add|replace|swap)_(?:att|obj|rel))\.json")
_FIELDS = ("filename", "caption", "negative_caption")
_PLACES = ("", "val2017/", "../val2017/", "../../val2017/", "images/", "../images/")
"""Where COCO's images may lie, seen from the JSON files."""


def fits(place: Place) -> bool:
    if place.file is not None:
        return _PART.fullmatch(place.file) is not None
    return any(_PART.fullmatch(name) for name in place.files) or "sugar_crepe" in place.folders or _below(place)


def _below(place: Place) -> bool:
    return "data" in place.folders and any(_PART.fullmatch(name) for name in place.tree.child("data").listed()[1])


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:  # noqa: ARG001 - as every kind's
    tree = place.tree
    if place.file is None and not any(_PART.fullmatch(name) for name in place.files):
        tree = tree.child("sugar_crepe" if "sugar_crepe" in place.folders else "data")
    files = [place.file] if place.file else sorted(name for name in tree.listed()[1] if _PART.fullmatch(name))
    parts = {file.removesuffix(".json"): _rows(tree, file) for file in files}
    names = sorted({row["filename"] for rows in parts.values() for row in rows})
    refuse_empty(len(names), str(tree), "pairs")
    folder = _folder(tree, names[0])
    number = {name: at for at, name in enumerate(names)}
    tasks: dict[str, Task] = {
        part: Matching(
            np.array([[number[row["filename"]]] for row in rows], np.int64),
            tuple((row["caption"], row["negative_caption"]) for row in rows),
        )
        for part, rows in parts.items()
    }
    return EvaluationSet("sugarcrepe", _Images(folder, names), tasks)


def _rows(tree: Tree, file: str) -> list[dict[str, Any]]:
    try:
        held = json.loads(tree.read(file))
    except ValueError as error:
        raise UserError(f"not readable as JSON ({error})", where=f"{tree}/{file}", do="Fetch it again") from None
    rows = list(held.values()) if isinstance(held, dict) else held
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in _FIELDS):
            raise UserError(
                f"it is no list of {', '.join(_FIELDS)}",
                where=f"{tree}/{file}",
                do="https://github.com/RAIVNLab/sugar-crepe has them",
            )
    refuse_empty(len(rows), f"{tree}/{file}", "pairs")
    return rows


def _folder(tree: Tree, first: str) -> Tree:
    for place in _PLACES:
        folder, rest = tree, place
        while rest.startswith("../"):
            folder, rest = folder.parent(), rest.removeprefix("../")
        folder = folder.child(rest.rstrip("/")) if rest else folder
        if folder.has(first):
            return folder
    raise UserError(
        f"there is no image {first}",
        where=str(tree),
        do="Put COCO's val2017 beside the JSON files: http://images.cocodataset.org/zips/val2017.zip",
    )


class _Images(Images):
    def __init__(self, folder: Tree, names: list[str]) -> None:
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, at: int) -> str:
        return f"{self._folder}/{self._names[at]}"

    def read(self, at: int) -> bytes:
        try:
            return self._folder.read(self._names[at])
        except FileNotFoundError:
            raise UserError("the image is missing", where=self.name(at), do="Unpack the whole of val2017") from None
