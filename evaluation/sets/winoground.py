"""Winoground (Thrush et al. 2022) as files: `examples.jsonl` and `images/`. Its Parquet is read by `table.py`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from evaluation.sets.base import EvaluationSet, Images, Place, SetSettings, refuse_empty
from evaluation.sets.files import Tree
from evaluation.tasks import Matching
from shards.errors import UserError

FIELDS = ("image_0", "image_1", "caption_0", "caption_1")
_FILE = "examples.jsonl"
_WHERE = "https://huggingface.co/datasets/facebook/winoground has them, for who accepts its terms"


def fits(place: Place) -> bool:
    if place.file is not None:
        return place.file == _FILE
    return _FILE in place.files or ("data" in place.folders and place.tree.child("data").has(_FILE))


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:  # noqa: ARG001 - as every kind's
    tree = place.tree if place.file or _FILE in place.files else place.tree.child("data")
    rows = _rows(tree)
    refuse_empty(len(rows), f"{tree}/{_FILE}", "examples")
    if "images" not in tree.listed()[0]:
        raise UserError("there is no folder images", where=str(tree), do=f"Unpack images.zip there; {_WHERE}")
    names = [str(row[name]) for row in rows for name in FIELDS[:2]]
    places = np.arange(len(names), dtype=np.int64).reshape(-1, 2)
    captions = tuple((row["caption_0"], row["caption_1"]) for row in rows)
    return EvaluationSet("winoground", _Images(tree.child("images"), names), {"winoground": Matching(places, captions)})


def _rows(tree: Tree) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(tree.lines(_FILE) or [], 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"line {number} is no JSON ({error})", where=f"{tree}/{_FILE}", do="Fetch it again"
            ) from None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in FIELDS):
            raise UserError(f"line {number} has not {', '.join(FIELDS)}", where=f"{tree}/{_FILE}", do=_WHERE)
        rows.append(row)
    return rows


class _Images(Images):
    def __init__(self, folder: Tree, names: list[str]) -> None:
        self._folder = folder
        held = folder.listed()[1]
        stems = {name.rsplit(".", 1)[0]: name for name in held}
        self._names = [name if name in held else stems.get(name, name) for name in names]

    def __len__(self) -> int:
        return len(self._names)

    def name(self, at: int) -> str:
        return f"{self._folder}/{self._names[at]}"

    def read(self, at: int) -> bytes:
        try:
            return self._folder.read(self._names[at])
        except FileNotFoundError:
            raise UserError(
                "the image is missing", where=self.name(at), do=f"Unpack images.zip there; {_WHERE}"
            ) from None
