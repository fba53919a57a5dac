"""What the user chooses for an audition."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, MinLen

from clip_models.precision import Precision
from shards.errors import UserError
from shards.settings import option, settings
from teacher_cache.building.settings import TeacherSpec

Scale = Annotated[float, Gt(0)]


@settings
class AuditionSettings:
    """Every teacher at every scale with every seed trains one student of `steps`; all are judged on the same samples.

    `teachers`: specs as in `load_teacher`, or, with `cache`, names in it (all of them unless some are named). `classes`
    and `label` as in `EvaluationSettings`: zero-shot top-1 then decides, else retrieval does.
    """

    shards: Annotated[str, option("what `clipstill ingest` wrote", flag="SHARDS")]
    teachers: Annotated[
        tuple[str, ...],
        option("a teacher as in `cache build`, or its name in --cache; repeatable", "TEACHER", flag="--teacher"),
    ] = ()
    scales: Annotated[
        Annotated[tuple[Scale, ...], MinLen(1)],
        option("logit scales to try of each", "T,T,...", flag="--scale", split=True),
    ] = (40.0, 60.0, 80.0)
    cache: Annotated[
        str | None,
        option("take embeddings from this cache of SHARDS (default: embed the part that is needed)", "CACHE"),
    ] = None
    out: Annotated[str, option("where runs and the page go", "FOLDER")] = "audition"
    samples: Annotated[int, option("train on about so many", "N", section="the students", ge=2)] = 20_000
    held_out: Annotated[int, option("judge by about so many others", "N", ge=2)] = 2000
    student: Annotated[str, option("as in `distill`", "MODEL")] = "ViT-T-16"
    image_size: Annotated[int | None, option("0: the student's own", "PX", ge=0)] = 112
    context_length: Annotated[int | None, option("0: the student's own", "N", ge=0)] = 16
    steps: Annotated[int, option("of each", "N", ge=2)] = 300
    batch_size: Annotated[int, option("global batch", "B", ge=2)] = 128
    lr: Annotated[float, option("peak learning rate", "LR", gt=0)] = 1e-3
    seeds: Annotated[int, option("students of each teacher and scale", "N", ge=1)] = 3
    views: Annotated[int, option("views an image, without --cache", "K", ge=1)] = 2
    precision: Annotated[Precision, option("of the students' forward")] = "fp32"
    classes: Annotated[str | None, option("JSON with classes and templates: zero-shot decides", "FILE")] = None
    label: Annotated[str | None, option("the metadata column that names a sample's class", "COLUMN")] = None

    def __post_init__(self) -> None:
        for flag, values in (("--teacher", self.teachers), ("--scale", self.scales)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise UserError(f"{twice} is given twice", where=flag, do="Give each once")
        if self.cache is None and not self.teachers:
            raise UserError("nobody is there to be heard", do="Give --teacher, repeatable, or --cache")
        names = [] if self.cache else [TeacherSpec(spec).name for spec in self.teachers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(
                f"two of the teachers are called {twice!r}",
                where="--teacher",
                do="Name them in `clipstill cache build --teacher-name`, and give that as --cache",
            )
        if (self.classes is None) != (self.label is None):
            raise UserError("zero-shot needs both classes and the label's field", do="Give both, or neither")
        if "://" in self.out:
            raise UserError("runs lie on a local disk", where=self.out, do="Give a path")
