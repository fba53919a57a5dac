"""What `clipstill evaluate` is told. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clip_models.precision import Precision
from evaluation.prompts import ClassFile, read_classes
from evaluation.suites.suites import SUITES
from shards.errors import UserError
from shards.settings import Known, option, settings


def refuse_twice(values: Sequence[str], where: str) -> None:
    """Raise `UserError` for a path or name that stands there again, however it is written."""
    seen: set[str] = set()
    for value in values:
        place = os.path.realpath(value) if Path(value).exists() else value.rstrip("/")
        if place in seen:
            raise UserError(f"{value} is given twice", where=where, do="Give each once")
        seen.add(place)


@settings
class SetSettings:
    """What the user says about sets: classes, labels, and how retrieval is judged."""

    classes: Annotated[
        str | None,
        option(
            "JSON with classes and templates, or with prompts of each class; what it leaves out is the set's", "FILE"
        ),
    ] = None
    label: Annotated[
        str | None,
        option(
            "the metadata column of a dataset with each sample's class: its name, or its place in the classes", "COLUMN"
        ),
    ] = None
    retrieval: Annotated[bool, option("leave out retrieval")] = True
    protocol: Annotated[
        Literal["standard", "clip-kd"],
        option("retrieval with all captions of an image, or CLIP-KD's: the first one alone"),
    ] = "standard"

    def __post_init__(self) -> None:
        if self.label is not None and self.classes is None:
            raise UserError("--label was given, but no classes to tell apart", do="Give both, or neither")

    def class_file(self) -> ClassFile | None:
        """What `classes` holds. Raises `UserError` if it cannot be read."""
        return None if self.classes is None else read_classes(self.classes)


@settings
class EvaluateSettings:
    """Models, and the sets that they are judged on."""

    models: Annotated[
        tuple[str, ...],
        Field(min_length=1),
        option("ARCH:TAG, ARCH:/path/to/weights, or a folder; several are compared, and seeds averaged", flag="MODEL"),
    ]
    on: Annotated[
        tuple[str, ...],
        option(
            "evaluate on this set; repeatable. As NAME=SET it goes by the name of a suite's column", "SET", path=True
        ),
    ] = ()
    sets: Annotated[SetSettings, option("", section="sets")] = SetSettings()
    teacher: Annotated[
        str | None, option("also say how far each model agrees with this one, and what each class won", "MODEL")
    ] = None
    precision: Annotated[Precision, option("of the forward; published figures are of fp32")] = "fp32"
    batch_size: Annotated[int, option("images a forward", "N", ge=1)] = 64

    suite: Annotated[
        Annotated[str, Known(tuple(SUITES))] | None,
        option("a published table with these models in it; what is not there is a gap", "SUITE", section="tables"),
    ] = None
    root: Annotated[
        str | None,
        option("a suite's sets lie here, each in a folder wds_NAME_test or as it is called", "ROOT", path=True),
    ] = None
    beside: Annotated[
        tuple[str, ...],
        option("more rows: JSON Lines as MobileCLIP's, or CSV as open_clip's results; repeatable", "FILE", path=True),
    ] = ()
    out: Annotated[
        str | None,
        option("write results.json, results.jsonl, results.csv, and of a suite table.md and index.html", "FOLDER"),
    ] = None

    def __post_init__(self) -> None:
        if self.suite is None and (self.root or self.beside):
            flag = "--root" if self.root else "--beside"
            raise UserError(f"{flag} would be ignored without a suite", do="Give --suite, or leave it out")
        for name, values in (("MODEL", self.models), ("--on", self.on), ("--beside", self.beside)):
            refuse_twice(values, name)
        if not self.on and not self.root:
            raise UserError("there is nothing to evaluate on", do="Give --on SET")
