"""What the user chooses for a build."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, InstanceOf

from shards.errors import UserError
from shards.settings import option, settings
from teacher_cache.captions import CaptionSource
from teacher_cache.dtypes import Dtype
from teacher_cache.teachers.settings import Forward, Towers
from teacher_cache.views import ViewPolicy


@dataclass(frozen=True)
class TeacherSpec:
    """`spec` as in `load_teacher`, its paths made absolute; `name` is the teacher's folder (default: from the spec)."""

    spec: str
    name: str = ""
    named: bool = field(init=False, default=False, compare=False)
    """Whether the user gave the name."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", bool(self.name))
        if self.name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise UserError(
                f"{self.name!r} names no folder of a teacher",
                where="--teacher-name",
                do="Use letters, digits, . _ and -",
            )
        object.__setattr__(self, "name", self.name or _short_name(self.spec))
        # Workers, and `verify` later, may run in another directory.
        object.__setattr__(self, "spec", absolute_spec(self.spec))


_NO_NAMES = {"model", "best", "open_clip_model", "open_clip_pytorch_model", "pytorch_model", "weights"}
"""What any model's folder or file is called."""


def _short_name(spec: str) -> str:
    """However a path is spelt, the folder's name is the same; of a run's `model/` it is the run's."""
    from teacher_cache.layout import slug  # noqa: PLC0415 - brings Arrow

    kind, colon, rest = spec.partition(":")
    if Path(spec).exists():
        return slug(_name_of(Path(spec).resolve()))
    return slug(f"{kind}-{_name_of(Path(rest).resolve())}" if colon and rest and Path(rest).exists() else spec)


def _name_of(path: Path) -> str:
    """The last part of a path that names something."""
    parts = [path.stem if path.is_file() else path.name, *(parent.name for parent in path.parents)]
    at = next((at for at, part in enumerate(parts) if part and part.lower() not in _NO_NAMES), 0)
    # A run delivers two models at most; the better one keeps its own name beside the run's.
    return f"{parts[at]}-best" if "best" in parts[:at] else parts[at]


def absolute_spec(spec: str) -> str:
    """A teacher's spec with whatever path there is in it made absolute."""
    kind, colon, rest = spec.partition(":")
    if Path(spec).exists():
        return str(Path(spec).absolute())
    return f"{kind}:{Path(rest).absolute()}" if colon and rest and Path(rest).exists() else spec


@settings
class BuildSettings:
    """What to cache, of the dataset at `shards`, in the folder `cache`.

    `teachers` run side by side on the same views. `views` is K, drawn by `policy`; "evaluation" is the one view that
    the teachers' own evaluation preprocessing makes. `captions` are the caption sets. `dtype` is how embeddings are
    stored. `batch_size` None: found by trying, and kept for the whole layer. Another batch size changes speed and, by
    the order of sums, an embedding by about the forward's precision, so a cache may be finished with another one.
    """

    shards: Annotated[str, option("what `clipstill ingest` wrote", flag="SHARDS")]
    cache: Annotated[str, option("where the cache goes (a path or s3://...)", "CACHE", flag="--out")]
    teachers: tuple[InstanceOf[TeacherSpec], ...]
    towers: Annotated[Towers, option("which to run", section="teachers")] = "both"
    views: Annotated[int, option("views an image", "K", section="views and captions", ge=1)] = 4
    policy: Annotated[ViewPolicy | Literal["evaluation"], option("")] = field(default_factory=ViewPolicy)
    captions: Annotated[
        tuple[Annotated[InstanceOf[CaptionSource], BeforeValidator(CaptionSource.read)], ...],
        option(
            "[NAME=]txt (default), json:FIELD*N (a list in KEY.json) or table:PATH.parquet#COLUMN*N (by key); "
            "repeatable",
            "SOURCE",
            default=False,
        ),
    ] = (CaptionSource("txt"),)
    dtype: Annotated[Dtype, option("of what is stored", section="how")] = "float16"
    forward: Annotated[Forward, option("")] = field(default_factory=Forward)
    batch_size: Annotated[int | None, option("images a forward (default: found by trying)", "N", ge=1)] = None

    def __post_init__(self) -> None:
        from shards.storage import Folder  # noqa: PLC0415 - brings fsspec

        object.__setattr__(self, "shards", Folder(self.shards).url)
        if not self.teachers:
            raise UserError("no teacher was named", do="Give --teacher")
        kind = "centre" if self.policy == "evaluation" else self.policy.kind
        if kind == "given":
            raise UserError("views that were given cannot be drawn", do="Choose how views are drawn")
        if kind != "crop" and self.views != 1:
            raise UserError(f"such views are all the same; {self.views} were asked for", do="Use --views 1")
        for what, names, own in (
            ("teacher", [teacher.name for teacher in self.teachers], "--teacher-name for each"),
            ("caption set", [source.name for source in self.captions], "NAME=SOURCE"),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(f"two of the {what}s are called {twice!r}", do=f"Give each its own: {own}")
