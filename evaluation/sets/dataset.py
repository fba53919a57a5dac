"""A dataset of shards as a set: retrieval by its captions, classification by a field of its metadata."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import Any

import numpy as np

from evaluation.prompts import Prompts
from evaluation.sets.base import EvaluationSet, Images, Place, SetSettings, check_labels, refuse_sorted_as_text
from evaluation.tasks import Classification, Retrieval, Task
from shards.errors import UserError
from shards.reader import Dataset


def fits(place: Place) -> bool:
    return place.file is None and bool(place.files & {"dataset.json"} or place.folders & {"_records", "_plan"})


def open_set(place: Place, settings: SetSettings) -> EvaluationSet:
    return of_dataset(Dataset.open(place.url), settings)


def of_dataset(dataset: Dataset, settings: SetSettings) -> EvaluationSet:
    """The set of a dataset that is open. Raises `UserError` if it can be asked nothing, or labels are no classes."""
    where = str(dataset.folder)
    given = settings.class_file()
    if (given is None) != (settings.label is None):
        missing, other = ("--label", "--classes") if given else ("--classes", "--label")
        raise UserError(
            f"{other} was given, but no {'label field' if given else 'classes'}",
            where=where,
            do=f"Zero-shot needs both: give {missing}, {'the metadata column' if given else 'a file'}",
        )
    if len(dataset) == 0:
        raise UserError("the dataset has no samples", where=where, do="Give one with samples")
    if not dataset.captioned and given is None:
        raise UserError(
            "this dataset has no captions: its list had none, so nothing can be retrieved",
            where=where,
            do="Give --classes and --label for zero-shot classification, which needs none",
        )
    tasks: dict[str, Task] = {}
    notes = []
    retrieves = dataset.captioned and settings.retrieval
    captions, image_of, values = _read(dataset, settings.label, captions=retrieves)
    if given is not None:
        prompts = given.prompts()
        chosen, labels = _labels(dataset, prompts, values, settings.label or "")
        check_labels(chosen, labels, where)
        tasks["zero_shot"] = Classification(chosen, labels)
    if retrieves:
        first = settings.protocol == "clip-kd"
        tasks["retrieval"] = retrieval(captions, image_of, first=first, equal=not first)
        if not first and (note := shared_note(shared(captions, image_of), len(dataset))):
            notes.append(note)
    elif settings.retrieval:
        notes.append("it has no captions, so there is no retrieval")
    return EvaluationSet(dataset.name, _Images(dataset), tasks, notes, dataset.captioned and not settings.retrieval)


def retrieval(captions: list[str], image_of: list[int], *, first: bool, equal: bool = False) -> Retrieval:
    """The task of these captions; of the first one of each image alone with `first`, which is CLIP-KD's protocol."""
    places = np.array(image_of, np.int64)
    if first:
        _, kept = np.unique(places, return_index=True)
        return Retrieval(tuple(captions[at] for at in kept), places[kept], equal)
    return Retrieval(tuple(captions), places, equal)


def shared(captions: list[str], image_of: list[int]) -> int:
    """How many images have a caption that another image has too."""
    held = Counter(caption for caption, _ in set(zip(captions, image_of, strict=True)))
    return len({image for caption, image in zip(captions, image_of, strict=True) if held[caption] > 1})


def shared_note(count: int, samples: int) -> str | None:
    """What equal captions mean for the figures of retrieval; None if there are none."""
    told = f"retrieval: {count} of {samples} samples share their caption with others, any of which counts as a hit"
    return told if count else None


class _Images(Images):
    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, at: int) -> bytes:
        return self._dataset.at(at).image_bytes

    def name(self, at: int) -> str:
        return str(self._dataset.at(at))


def _read(dataset: Dataset, label: str | None, *, captions: bool) -> tuple[list[str], list[int], list[Any]]:
    """Captions, the image that each is of, and what stands in the label's field; each only if it is wanted."""
    texts: list[str] = []
    image_of: list[int] = []
    values: list[Any] = []
    for at, sample in enumerate(dataset):
        if captions:
            said = sample.captions or (sample.caption,)
            texts += said
            image_of += [at] * len(said)
        if label is not None:
            meta = sample.meta
            if label not in meta:
                held = ", ".join(sorted(meta)) or "none"
                raise UserError(f"there is no field {label!r}", where=str(sample), do=f"Its fields: {held}")
            values.append(meta[label])
    return texts, image_of, values


def _labels(dataset: Dataset, prompts: Prompts, values: list[Any], field: str) -> tuple[Prompts, np.ndarray]:
    """The class of each sample: by name, or by its place where the values are whole numbers that name no class.

    By name a class that is listed twice is one: nothing could tell the two apart.
    """
    by_place = all(_is_number(value) for value in values) and not any(str(value) in prompts.names for value in values)
    if by_place:
        numbers = np.array([int(value) for value in values], np.int64)
        refuse_sorted_as_text(prompts.names, str(dataset.folder))
        return prompts, numbers
    places = {name: number for number, name in reversed(list(enumerate(prompts.names)))}
    kept = sorted(places.values())
    numbered = {prompts.names[at]: number for number, at in enumerate(kept)}
    labels = np.empty(len(values), np.int64)
    for at, value in enumerate(values):
        name = str(value) if type(value) is int else value
        if not isinstance(name, str) or name not in numbered:
            raise _no_class(str(dataset.at(at)), value, field, list(numbered))
        labels[at] = numbered[name]
    return prompts.only(kept), labels


def _is_number(value: object) -> bool:
    """Whole numbers: also as text, and as the floats that a column of integers with a gap in it becomes."""
    if isinstance(value, float):
        return value.is_integer()
    return type(value) is int or (isinstance(value, str) and re.fullmatch(r"\d+", value) is not None)


def _no_class(where: str, value: object, field: str, names: list[str]) -> UserError:
    close = difflib.get_close_matches(str(value), names, n=3)
    do = f"The closest are {', '.join(close)}" if close else "Labels are class names as they are written, or numbers"
    return UserError(f"the label {value!r} in field {field!r} is no class", where=where, do=do)
