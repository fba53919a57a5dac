"""`wds_*` folders, as CLIP_benchmark writes them and DataComp publishes them (huggingface.co/clip-benchmark, djghosh).

`test/nshards.txt`, `test/{0..n-1}.tar`; `classnames.txt`, `zeroshot_classification_templates.txt`, `dataset_type.txt`.
A sample is an image and `.cls`, `.npy` (several labels; beside a `.cls` what DataComp groups by) or `.txt`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from evaluation.prompts import check_templates
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
from evaluation.sets.dataset import retrieval
from evaluation.sets.files import Tree
from evaluation.suites.tasks import task_name
from evaluation.tasks import Classification, MultiLabel, Task
from shards.errors import UserError
from shards.tar_members import Member, TarError, tar_members

_IMAGES = ("webp", "png", "jpg", "jpeg")
_TYPES = ("classification", "multilabel", "retrieval")
_MOST_BYTES = 1 << 20
"""Of one label or caption."""
GROUPED = {
    "wilds-iwildcam": ("location", "sequence", "year", "month", "day", "hour", "minute", "second", "y"),
    "wilds-camelyon17": ("hospital", "slide", "y"),
    "wilds-fmow": ("region", "year", "y"),
    "dollar_street": ("income_ds", "income_meta", "region"),
    "geode": ("region", "country"),
}
"""Task → what the numbers of a sample's `.npy` are, where DataComp has such beside the label."""


def fits(place: Place) -> bool:
    if place.file is not None:
        return False
    if place.files & {"nshards.txt"}:
        return True
    splits = place.folders or {"test", "train"}
    if any(split in splits and place.tree.has(f"{split}/nshards.txt") for split in ("test", "train")):
        return True
    return "test" in place.folders and place.tree.child("test").has("0.tar")


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:
    """Every tar's headers, labels and captions are read; one that lies elsewhere is copied to `$TMPDIR`."""
    tree, name = place.tree, place.name
    if "nshards.txt" in place.files:
        if name == "train":
            raise _other_split(place.url)
        tree, name = tree.parent(), tree.parent().url.rsplit("/", 1)[-1]
    if not tree.has("test/nshards.txt"):
        if tree.has("test/0.tar"):
            count = sum(file.endswith(".tar") for file in tree.child("test").listed()[1])
            raise UserError(
                f"nshards.txt is missing beside {count} tars, so nothing says whether they are all",
                where=f"{tree}/test",
                do="Fetch it, or write the number of tars into it",
            )
        raise _other_split(place.url)
    kind = (tree.text("dataset_type.txt") or "classification").strip().lower()
    if kind not in _TYPES:
        raise UserError(f"its type is {kind!r}", where=f"{tree}/dataset_type.txt", do=f"One of {', '.join(_TYPES)}")
    task = name.removeprefix("wds_").removesuffix("_test")
    label = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}[kind]
    images = _Images(tree)
    refuse_empty(len(images), str(tree), "samples")
    if kind == "retrieval":
        made = _retrieval(images, settings)
        return EvaluationSet(task, images, made, left_out=not settings.retrieval)
    given = settings.class_file()
    get = f"It comes with the set: {_address(name)}, or give --classes"
    names = tree.lines("classnames.txt")
    templates = tree.lines("zeroshot_classification_templates.txt")
    check_templates(templates or (), f"{tree}/zeroshot_classification_templates.txt")
    prompts = chosen_prompts(given, names, templates, str(tree), get)
    refuse_sorted_as_text(prompts.names, str(tree))
    if kind == "multilabel":
        rows = [images.array(at) for at in range(len(images))]
        return EvaluationSet(task, images, {"zero_shot": MultiLabel(prompts, _several(rows, len(prompts.names), tree))})
    labels = np.array([images.number(at) for at in range(len(images))], np.int64)
    check_labels(prompts, labels, str(tree))
    made_task = Classification(prompts, labels)
    fields = next((fields for one, fields in GROUPED.items() if task_name(one) == task_name(task)), None)
    if fields is not None and all("npy" in sample.parts for sample in images.samples):
        told = np.stack([images.array(at) for at in range(len(images))]).astype(np.int64)
        if told.shape[1] < len(fields):
            raise UserError(f"a sample's .npy has {told.shape[1]} numbers, not {len(fields)}", where=f"{tree}/test")
        made_task = replace(made_task, groups={field: told[:, at] for at, field in enumerate(fields)})
    assert label
    return EvaluationSet(task, images, {"zero_shot": made_task})


def _retrieval(images: _Images, settings: SetSettings) -> dict[str, Task]:
    if not settings.retrieval:
        return {}
    captions: list[str] = []
    image_of: list[int] = []
    for at in range(len(images)):
        said = images.text(at, "txt").splitlines()
        if not any(line.strip() for line in said):
            raise UserError("the image has no caption", where=images.name(at), do="Fetch the set again")
        captions += said
        image_of += [at] * len(said)
    return {"retrieval": retrieval(captions, image_of, first=settings.protocol == "clip-kd")}


def _several(rows: list[np.ndarray], classes: int, tree: Tree) -> np.ndarray:
    """(n, C) bool of what the samples' arrays hold: ones and zeros, C of them."""
    for row in rows:
        if row.shape != (classes,) or not np.isin(row, (0, 1)).all():
            raise UserError(
                f"a sample has labels of shape {row.shape}, and there are {classes} class names",
                where=f"{tree}/test",
                do="A .npy of several labels holds a 1 or 0 for each line of classnames.txt",
            )
    return np.stack(rows).astype(bool)


def _other_split(url: str) -> UserError:
    return UserError(
        "only the training split is here",
        where=url,
        do="Evaluation is on `test`: give a folder that has test/nshards.txt",
    )


def _address(name: str) -> str:
    return f"https://huggingface.co/datasets/{'djghosh' if name.endswith('_test') else 'clip-benchmark'}/{name}"


@dataclass(frozen=True)
class _Sample:
    tar: int
    key: str
    parts: dict[str, Member]


class _Images(Images):
    """Samples in the order of the tars; the tars are mapped."""

    def __init__(self, tree: Tree) -> None:
        self._where = f"{tree}/test"
        count = (tree.text("test/nshards.txt") or "").strip()
        if not count.isdecimal() or not int(count):
            raise UserError(f"it says {count!r} shards", where=f"{tree}/test/nshards.txt", do="Fetch the set again")
        self._tars: list[memoryview] = []
        self.samples: list[_Sample] = []
        for number in range(int(count)):
            try:
                self._tars.append(tree.mapped(f"test/{number}.tar"))
            except FileNotFoundError:
                raise UserError(
                    f"{number}.tar of {count} is missing", where=self._where, do="Fetch the set again, all of it"
                ) from None
            try:
                self.samples += self._samples_of(number)
            except TarError as error:
                raise UserError(str(error), where=f"{self._where}/{number}.tar", do="Fetch it again") from None

    def _samples_of(self, number: int) -> Iterator[_Sample]:
        """By webdataset's rule: files in a row with the same name up to the first dot of its last part."""
        key, parts = "", dict[str, Member]()
        for member in tar_members(self._tars[number]):
            folder, slash, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if not stem or member.link:
                continue
            if (found := f"{folder}{slash}{stem}") != key:
                if parts:
                    yield _Sample(number, key, self._checked(number, key, parts))
                key, parts = found, {}
            parts[ending.lower()] = member
        if parts:
            yield _Sample(number, key, self._checked(number, key, parts))

    def _checked(self, number: int, key: str, parts: dict[str, Member]) -> dict[str, Member]:
        if not any(ending in parts for ending in _IMAGES):
            where = f"{self._where}/{number}.tar, {key}"
            raise UserError(
                f"there is no image, only {', '.join(sorted(parts))}", where=where, do="Fetch the set again"
            )
        return parts

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, at: int) -> str:
        return f"{self._where}/{self.samples[at].tar}.tar, {self.samples[at].key}"

    def _bytes(self, at: int, ending: str) -> bytes:
        sample = self.samples[at]
        member = sample.parts.get(ending)
        if member is None:
            raise UserError(
                f"there is no .{ending}, only {', '.join(sorted(sample.parts))}",
                where=self.name(at),
                do="dataset_type.txt says of which kind the set is",
            )
        if member.size > _MOST_BYTES and ending not in _IMAGES:
            raise UserError(f"its .{ending} has {member.size:,} bytes", where=self.name(at), do="Fetch the set again")
        return bytes(self._tars[sample.tar][member.offset : member.offset + member.size])

    def read(self, at: int) -> bytes:
        return self._bytes(at, next(ending for ending in _IMAGES if ending in self.samples[at].parts))

    def text(self, at: int, ending: str) -> str:
        try:
            return self._bytes(at, ending).decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"its .{ending} is no text in UTF-8", where=self.name(at), do="Fetch it again") from None

    def number(self, at: int) -> int:
        text = self.text(at, "cls").strip()
        try:
            return int(text)
        except ValueError:
            raise UserError(
                f"its label is {text[:40]!r}, no number", where=self.name(at), do="Fetch it again"
            ) from None

    def array(self, at: int) -> np.ndarray:
        try:
            return np.atleast_1d(np.load(io.BytesIO(self._bytes(at, "npy")), allow_pickle=False))
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise UserError(f"its .npy cannot be read ({error})", where=self.name(at), do="Fetch it again") from None
