"""ObjectNet (Barbu et al. 2019) as it unpacks: `images/` by class, `mappings/` with its names and which ImageNet has.

The 113 classes that ImageNet-1k has too are judged, among these names; the red frame of 2 pixels is cut off, as the
set's own terms ask.
"""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from evaluation.prompts import imagenet_templates
from evaluation.sets.base import EvaluationSet, Images, Place, SetSettings, check_labels, chosen_prompts, refuse_empty
from evaluation.sets.files import Tree
from evaluation.sets.folders import ENDINGS
from evaluation.tasks import Classification
from shards.errors import UserError

_FRAME = 2
_LABELS, _IMAGENET = "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json"


def fits(place: Place) -> bool:
    return place.file is None and _root(place) is not None


def _root(place: Place) -> Tree | None:
    """The folder that has `images` and `mappings`."""
    if {"images", "mappings"} <= place.folders:
        return place.tree
    return place.tree.child("objectnet-1.0") if "objectnet-1.0" in place.folders else None


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:
    root = _root(place)
    assert root is not None
    names, imagenet = _mapping(root, _LABELS), _mapping(root, _IMAGENET)
    folders, _ = root.child("images").listed()
    kept = sorted((name for name in folders if names.get(name) in imagenet), key=lambda name: names[name].lower())
    absent = set(imagenet) - {names[name] for name in kept}
    if absent and kept:
        raise UserError(
            f"{len(absent)} of {len(imagenet)} classes are missing, {min(absent)!r} among them",
            where=f"{root}/images",
            do="Unpack the whole of ObjectNet: https://objectnet.dev",
        )
    files = [
        (number, f"images/{name}/{file}")
        for number, name in enumerate(kept)
        for file in sorted(root.child(f"images/{name}").listed()[1])
        if file.lower().endswith(ENDINGS)
    ]
    refuse_empty(len(files), f"{root}/images")
    own = [names[name].lower() for name in kept]
    prompts = chosen_prompts(settings.class_file(), own, imagenet_templates(), str(root), "")
    labels = np.array([number for number, _ in files], np.int64)
    check_labels(prompts, labels, str(root))
    images = _Images(root, [file for _, file in files])
    return EvaluationSet("objectnet", images, {"zero_shot": Classification(prompts, labels)})


def _mapping(root: Tree, name: str) -> dict[str, str]:
    try:
        held = json.loads(root.read(f"mappings/{name}"))
    except FileNotFoundError:
        raise UserError(
            "it is missing", where=f"{root}/mappings/{name}", do="It comes with https://objectnet.dev"
        ) from None
    except ValueError as error:
        raise UserError(
            f"not readable as JSON ({error})", where=f"{root}/mappings/{name}", do="Unpack it again"
        ) from None
    if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
        raise UserError("it is no object of texts", where=f"{root}/mappings/{name}", do="Unpack it again")
    return held


class _Images(Images):
    def __init__(self, root: Tree, files: list[str]) -> None:
        self._root, self._files = root, files

    def __len__(self) -> int:
        return len(self._files)

    def name(self, at: int) -> str:
        return f"{self._root}/{self._files[at]}"

    def read(self, at: int) -> bytes:
        return self._root.read(self._files[at])

    def open(self, at: int) -> Image.Image:
        whole = super().open(at)
        return whole.crop((_FRAME, _FRAME, whole.width - _FRAME, whole.height - _FRAME))
