"""Evaluation sets: what is at a path → images by place, and what is asked of them.

`KINDS` is the only list of the kinds; each is a module that says whether a place is one (`fits`) and opens it. Read
`base.py` first. Nothing here imports torch, and nothing is downloaded that the user has not given the address of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module

from evaluation.sets.base import EvaluationSet, Kind, Place, SetSettings
from evaluation.sets.files import Tree
from evaluation.tasks import figures_of
from shards.errors import UserError
from shards.settings import fields_of, flag_of

KINDS: dict[str, Kind] = {
    "dataset": Kind(
        about="a dataset of shards, adopted ones and selections among them",
        module="evaluation.sets.dataset",
        takes=frozenset({"classes", "label", "retrieval", "protocol"}),
    ),
    "wds": Kind(
        about="a wds_* folder of CLIP_benchmark or DataComp",
        module="evaluation.sets.wds",
        takes=frozenset({"classes", "retrieval", "protocol"}),
    ),
    "cifar": Kind(
        about="CIFAR-10 or -100, binary or Python version",
        module="evaluation.sets.cifar",
        takes=frozenset({"classes"}),
    ),
    "objectnet": Kind(about="ObjectNet", module="evaluation.sets.objectnet", takes=frozenset({"classes"})),
    "sugarcrepe": Kind(about="SugarCrepe's JSON files beside COCO's val2017", module="evaluation.sets.sugarcrepe"),
    "winoground": Kind(about="Winoground's examples.jsonl and images", module="evaluation.sets.winoground"),
    "table": Kind(
        about="Parquet with an image and its captions (or Winoground, WinoGAViL)",
        module="evaluation.sets.table",
        takes=frozenset({"retrieval", "protocol"}),
    ),
    "folders": Kind(
        about="a folder of images for each class, ImageNet's among them",
        module="evaluation.sets.folders",
        takes=frozenset({"classes"}),
    ),
}
"""In the order in which they are tried."""


def look(url: str) -> Place:
    """What is at a path or URL. Raises `UserError` if nothing is."""
    tree = Tree(url)
    # Of a web server everything is a file.
    on_web = url.startswith(("http://", "https://"))
    kind = "folder" if on_web and _has_shards(tree) else tree.kind()
    if kind == "file":
        parent = tree.parent()
        return Place(url, parent, *parent.listed(), file=tree.url.rsplit("/", 1)[-1])
    folders, files = tree.listed()
    # A server that lists nothing may have files all the same.
    if kind or folders or files or _has_shards(tree):
        return Place(url, tree, folders, files)
    on_hub = url.count("/") == 1 and not url.startswith((".", "/", "~")) and "wds_" in url
    do = f"Of the hub's give hf://datasets/{url}" if on_hub else "Check the path; nothing is downloaded unasked"
    raise UserError("there is no such file or folder", where=url, do=do)


def _has_shards(tree: Tree) -> bool:
    return any(tree.has(f"{split}/nshards.txt") for split in ("test", "train"))


def kind_of(place: Place) -> str:
    """The name of the kind in `KINDS`. Raises `UserError` if it is of none."""
    for name, kind in KINDS.items():
        if import_module(kind.module).fits(place):
            return name
    from shards.places import what_is_at  # noqa: PLC0415
    from shards.storage import Folder  # noqa: PLC0415

    what = f"the file {place.file}" if place.file else what_is_at(Folder(place.url))
    known = "; ".join(kind.about for kind in KINDS.values())
    raise UserError(f"this is no evaluation set: {what}", where=place.url, do=f"A set is one of: {known}")


def split_name(given: str) -> tuple[str | None, str]:
    """`NAME=SET` → the name and the path; a path that is there as it stands has none."""
    name, equals, url = given.partition("=")
    named = equals and re.fullmatch(r"[\w@ .+-]+", name) and not Tree(given).kind()
    return (name, url) if named else (None, given)


def open_set(url: str, settings: SetSettings | None = None) -> EvaluationSet:
    """The set at a path or URL. Raises `UserError` for what is none, or cannot be used as it is set up."""
    return open_sets([url], settings or SetSettings())[0]


def open_sets(urls: Sequence[str], settings: SetSettings) -> list[EvaluationSet]:
    """As `open_set`, of several; an option must be looked at by one of them at least.

    Raises `UserError` also if retrieval is all that a set has and it is to be left out.
    """
    named = [split_name(url) for url in urls]
    places = [look(url) for _, url in named]
    kinds = [kind_of(place) for place in places]
    refuse_ignored(settings, kinds, "the sets given")
    settings.class_file()
    found: list[EvaluationSet] = []
    for (name, _), place, kind in zip(named, places, kinds, strict=True):
        opened: EvaluationSet = import_module(KINDS[kind].module).open_set(place, settings)
        opened = opened if name is None else replace(opened, name=name)
        if not opened.tasks:
            raise UserError(
                "nothing is left to measure: it has captions alone", where=place.url, do="Do not give --no-retrieval"
            )
        found.append(opened)
    retrieves = any(type(task).__name__ == "Retrieval" for one in found for task in one.tasks.values())
    if not settings.retrieval and not any(one.left_out for one in found):
        raise UserError("--no-retrieval would be ignored: no set has captions", do="Leave it out")
    if settings.protocol != "standard" and not retrieves:
        raise UserError(f"--protocol {settings.protocol} would be ignored: no set has captions", do="Leave it out")
    return found


def open_by_name(urls: Sequence[str], settings: SetSettings) -> dict[str, EvaluationSet]:
    """As `open_sets`, each by its name; where two are called alike, by as much of the path as tells them apart."""
    found = open_sets(urls, settings)
    names = [one.name for one in found]
    for at, (name, url) in enumerate(zip(names, urls, strict=True)):
        if names.count(name) > 1:
            parts = url.rstrip("/").split("/")
            depth = next(
                (
                    depth
                    for depth in range(1, len(parts) + 1)
                    if sum(other.rstrip("/").split("/")[-depth:] == parts[-depth:] for other in urls) == 1
                ),
                len(parts),
            )
            found[at] = replace(found[at], name=".".join(parts[-depth:]))
    return {one.name: one for one in found}


def refuse_unknown_figure(figure: str | None, sets: Mapping[str, EvaluationSet]) -> None:
    """Raise `UserError` if `figure` is none that a run logs of these sets, or one of which less is better."""
    known = [
        "/".join(["eval", *([name] if len(sets) > 1 else []), task, each])
        for name, one in sets.items()
        for task, asked in one.tasks.items()
        for each in figures_of(asked)
    ]
    if figure is not None and figure not in known:
        raise UserError(f"evaluation.best is {figure!r}, it must be one of {', '.join(known)}")


def refuse_ignored(settings: SetSettings, kinds: Sequence[str], where: str) -> None:
    """Raise `UserError` for an option that no set looks at."""
    for name, field in fields_of(SetSettings).items():
        if getattr(settings, name) != field.default and not any(name in KINDS[kind].takes for kind in kinds):
            flag = flag_of(name, field)
            raise UserError(f"{flag} would be ignored: {where} do not look at it", do=f"Leave {flag} out")
    if not settings.retrieval and settings.protocol != "standard":
        raise UserError("--protocol would be ignored, as retrieval is left out", do="Leave out one of them")


__all__ = ["KINDS", "EvaluationSet", "SetSettings", "open_by_name", "open_set", "open_sets", "refuse_unknown_figure"]
