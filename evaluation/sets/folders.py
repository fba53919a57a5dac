"""A folder of images for each class: anybody's, and ImageNet-1k, -V2, -R, -A, -Sketch and -O as they unpack.

ImageNet's folders are wnids, in the order of which the 1000 classes are numbered; those that are there are chosen
among, as -A, -R and -O are judged (200 of the 1000). ImageNet-V2's are the class numbers as text. Names and templates
are OpenAI's, from open_clip.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from evaluation.prompts import ClassFile, Prompts, Template, check_templates, imagenet_names, imagenet_templates
from evaluation.sets.base import (
    EvaluationSet,
    Images,
    Place,
    SetSettings,
    check_labels,
    chosen_prompts,
    refuse_empty,
    refuse_sorted_as_text,
)
from evaluation.sets.files import Tree
from evaluation.tasks import Classification
from shards.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SPLITS = ("test", "val", "valid", "validation")
_WNID = re.compile(r"n\d{8}")
_CLASSES = 1000


def fits(place: Place) -> bool:
    """Folders with images in them, or splits of such; a flat folder of ImageNet's files is told what it lacks."""
    if place.file is not None:
        return False
    if any(name.startswith("ILSVRC2012_val_") for name in place.files):
        return True
    return any(
        _has_images(place.tree, name) or (name in (*_SPLITS, "train") and place.tree.child(name).listed()[0])
        for name in sorted(place.folders)[:8]
    )


def _has_images(tree: Tree, name: str) -> bool:
    return any(_is_image(file) for file in tree.child(name).listed()[1])


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:
    if any(name.startswith("ILSVRC2012_val_") for name in place.files):
        raise UserError(
            "ImageNet's validation images lie here without the folders of their classes",
            where=place.url,
            do="Sort them by the development kit's labels (ILSVRC2012_validation_ground_truth.txt): one folder a wnid",
        )
    tree, folders = _split(place)
    listed = {name: sorted(file for file in tree.child(name).listed()[1] if _is_image(file)) for name in folders}
    bare = [name for name, files in listed.items() if not files]
    listed = {name: files for name, files in listed.items() if files}
    images = _Images(tree, [(name, file) for name in ordered(listed) for file in listed[name]])
    refuse_empty(len(images), str(tree))
    names = ordered(listed)
    prompts, numbers, notes = _classes(tree, place, names, settings.class_file())
    counts = [len(listed[name]) for name in names]
    if bare:
        notes = [*notes, f"{len(bare)} folders have no image and are no classes here: {', '.join(bare[:5])}"]
    labels = np.repeat(np.array(numbers, np.int64), counts)
    check_labels(prompts, labels, str(tree))
    return EvaluationSet(_task(place, names), images, {"zero_shot": Classification(prompts, labels)}, notes)


def _split(place: Place) -> tuple[Tree, list[str]]:
    """The folder with the classes, and their names: of several splits the one to test on."""
    found = [name for name in _SPLITS if name in place.folders and place.tree.child(name).listed()[0]]
    if found and ("train" in place.folders or len(place.folders) <= len(found)):
        tree = place.tree.child(found[0])
        return tree, sorted(tree.listed()[0])
    if "train" in place.folders and not _has_images(place.tree, "train"):
        raise _training(place.url, "only the training split is here")
    if place.name == "train":
        beside = sorted(set(_SPLITS) & place.tree.parent().listed()[0])
        if beside:
            raise _training(place.url, f"this is the training split, and {beside[0]} lies beside it")
    return place.tree, sorted(place.folders)


def _training(where: str, problem: str) -> UserError:
    return UserError(problem, where=where, do=f"Evaluation is on what was not trained on: {', '.join(_SPLITS)}")


def ordered(names: object) -> list[str]:
    """Numbers as numbers, so that folder 10 comes after 9; anything else as text."""
    listed = list(names)  # type: ignore[call-overload]
    numeric = all(re.fullmatch(r"\d+", name) for name in listed)
    return sorted(listed, key=int) if numeric else sorted(listed)


def _classes(
    tree: Tree, place: Place, folders: list[str], given: ClassFile | None
) -> tuple[Prompts, list[int], list[str]]:
    """The classes, which of them each folder is, and what a reader must know."""
    wnids = imagenet_wnids()
    where = str(tree)
    beside = [tree, place.tree]
    names = next((found for one in beside if (found := one.lines("classnames.txt")) is not None), None)
    templates = next(
        (found for one in beside if (found := one.lines("zeroshot_classification_templates.txt")) is not None), None
    )
    check_templates(templates or (), f"{where}/zeroshot_classification_templates.txt")
    numeric = all(re.fullmatch(r"\d+", name) for name in folders)
    if all(_WNID.fullmatch(name) for name in folders):
        unknown = next((name for name in folders if name not in wnids), None)
        if unknown is None and (given is None or given.names is None) and names is None:
            kept = [wnids.index(name) for name in folders]
            prompts = chosen_prompts(given, imagenet_names(), templates or imagenet_templates(), where, "").only(kept)
            few = f"chosen among the {len(kept)} classes that are here, of ImageNet's 1000"
            return prompts, list(range(len(kept))), [few] * (len(kept) < _CLASSES)
        if unknown is not None and names is None and given is None:
            raise UserError(f"{unknown} is none of ImageNet's 1000 classes", where=where, do="Give --classes")
        if given is not None and given.names is not None:
            return _by_order(folders, wnids, templates or imagenet_templates(), given)
    if numeric:
        return _numbered(where, folders, names, templates, given)
    if names is not None:
        return _listed(where, folders, names, templates, given)
    own = [name.replace("_", " ") for name in folders]
    get = "Put zeroshot_classification_templates.txt beside the folders, or give --classes"
    prompts = chosen_prompts(given, own, templates, where, get)
    if given is None or given.names is None:
        return prompts, list(range(len(folders))), []
    return prompts, [_place(name, prompts.names, given.where) for name in folders], []


def _by_order(
    folders: list[str], wnids: list[str], templates: Sequence[Template], given: ClassFile
) -> tuple[Prompts, list[int], list[str]]:
    """The user's own names of wnids: one for each folder, or of all 1000 classes, in the order of the wnids."""
    prompts = given.prompts(templates=templates)
    if len(prompts.names) == len(folders):
        return prompts, list(range(len(folders))), []
    if len(prompts.names) == _CLASSES and all(name in wnids for name in folders):
        kept = [wnids.index(name) for name in folders]
        return prompts.only(kept), list(range(len(kept))), []
    raise UserError(
        f"there are {len(prompts.names)} class names, and {len(folders)} folders",
        where=given.where,
        do="Name one class for each folder, in the order of their names",
    )


def _numbered(
    where: str, folders: list[str], names: list[str] | None, templates: list[str] | None, given: ClassFile | None
) -> tuple[Prompts, list[int], list[str]]:
    """Folders that are class numbers: line n of the names is folder n. 1000 of them are ImageNet-V2's."""
    numbers = [int(name) for name in folders]
    is_imagenet = numbers == list(range(_CLASSES)) and names is None
    get = "Numbers say no names: put classnames.txt beside the folders, or give --classes"
    prompts = chosen_prompts(
        given,
        imagenet_names() if is_imagenet else names,
        templates or (imagenet_templates() if is_imagenet else None),
        where,
        get,
    )
    refuse_sorted_as_text(prompts.names, where)
    if numbers and max(numbers) >= len(prompts.names):
        raise UserError(
            f"there is a folder {max(numbers)}, and {len(prompts.names)} class names (0 to {len(prompts.names) - 1})",
            where=where,
            do="Line n of the names names folder n, from 0",
        )
    return prompts, numbers, []


def _listed(
    where: str, folders: list[str], names: list[str], templates: list[str] | None, given: ClassFile | None
) -> tuple[Prompts, list[int], list[str]]:
    """Names in a file: as many as there are folders, in their order; where they are folders' names, by these."""
    prompts = chosen_prompts(given, names, templates, where, "Put zeroshot_classification_templates.txt there")
    if given is not None and given.names is not None:
        return prompts, [_place(name, prompts.names, given.where) for name in folders], []
    tidy = {_tidied(name): number for number, name in enumerate(names)}
    if all(_tidied(name) in tidy for name in folders):
        return prompts, [tidy[_tidied(name)] for name in folders], []
    if len(names) != len(folders):
        raise UserError(
            f"classnames.txt has {len(names)} lines, and there are {len(folders)} folders",
            where=where,
            do="Line n names the n-th folder in the order of their names",
        )
    near = [name for name in folders if _tidied(name) in tidy]
    if near and [tidy[_tidied(name)] for name in near] != [folders.index(name) for name in near]:
        raise UserError(
            "the lines of classnames.txt are not in the order of the folders, and some are no folder's name",
            where=where,
            do=f"Folders come in this order: {', '.join(folders[:4])}, ...",
        )
    return prompts, list(range(len(folders))), []


def _tidied(name: str) -> str:
    return re.sub(r"[\s_/-]+", " ", name).strip().casefold()


def _place(folder: str, names: tuple[str, ...], where: str) -> int:
    places = {_tidied(name): number for number, name in reversed(list(enumerate(names)))}
    found = places.get(_tidied(folder))
    if found is None:
        close = difflib.get_close_matches(folder, names, n=3)
        do = f"The closest are {', '.join(close)}" if close else f"There are {', '.join(names[:5])}, ..."
        raise UserError(f"the folder {folder!r} is none of the {len(names)} classes", where=where, do=do)
    return found


def imagenet_wnids() -> list[str]:
    """The 1000 wnids of ImageNet-1k in the order of the class numbers, from timm."""
    return _wnids("imagenet_synsets.txt")


def _wnids(file: str) -> list[str]:
    package = find_spec("timm")
    assert package is not None
    folder = next(iter(package.submodule_search_locations or ()))
    return Path(folder, "data", "_info", file).read_text(encoding="utf-8").split()


def _task(place: Place, folders: list[str]) -> str:
    """The task that ImageNet's folders are of, else the folder's own name."""
    own = place.name.lower()
    if all(_WNID.fullmatch(name) for name in folders):
        if len(folders) == _CLASSES:
            return "imagenet_sketch" if "sketch" in own else "imagenet1k"
        for task, file in (("imagenet-a", "imagenet_a_synsets.txt"), ("imagenet-r", "imagenet_r_synsets.txt")):
            if sorted(_wnids(file)) == folders:
                return task
        if "imagenet-o" in own or "imagenet_o" in own:
            return "imagenet-o"
    if len(folders) == _CLASSES and folders == [str(number) for number in range(_CLASSES)]:
        return "imagenetv2"
    return place.name


class _Images(Images):
    def __init__(self, tree: Tree, files: list[tuple[str, str]]) -> None:
        self._tree, self._files = tree, files

    def __len__(self) -> int:
        return len(self._files)

    def name(self, at: int) -> str:
        return "/".join((str(self._tree), *self._files[at]))

    def read(self, at: int) -> bytes:
        return self._tree.read("/".join(self._files[at]))
