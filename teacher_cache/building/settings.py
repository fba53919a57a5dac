"""What the user chooses for a build."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shards import Folder, UserError
from teacher_cache.captions import CaptionSource
from teacher_cache.dtypes import Dtype, check_dtype
from teacher_cache.layout import slug
from teacher_cache.teachers import Forward, Towers
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


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What to cache, of the dataset at `shards`, in the folder `cache`.

    `teachers` run side by side on the same views. `views` is K, drawn by `policy`; "evaluation" is the one view that
    the teachers' own evaluation preprocessing makes. `captions` are the caption sets. `dtype` is how embeddings are
    stored. `batch_size` None: found by trying, and kept for the whole layer. Another batch size changes speed and, by
    the order of sums, an embedding by about the forward's precision, so a cache may be finished with another one.
    """

    shards: str
    cache: str
    teachers: tuple[TeacherSpec, ...]
    towers: Towers = "both"
    views: int = 4
    policy: ViewPolicy | Literal["evaluation"] = field(default_factory=ViewPolicy)
    captions: tuple[CaptionSource, ...] = (CaptionSource("txt"),)
    dtype: Dtype = "float16"
    forward: Forward = field(default_factory=Forward)
    batch_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", Folder(self.shards).url)
        check_dtype(self.dtype)
        if not self.teachers:
            raise UserError("no teacher was named", do="Give --teacher")
        if self.views < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise UserError(f"{self.views} views in batches of {self.batch_size} cannot be built")
        kind = "centre" if self.policy == "evaluation" else self.policy.kind
        if kind == "given":
            raise UserError("views that were given cannot be drawn", do="Choose how views are drawn")
        if kind != "crop" and self.views != 1:
            raise UserError(f"such views are all the same; {self.views} were asked for", do="Use --views 1")
        for what, names in (
            ("teacher", [teacher.name for teacher in self.teachers]),
            ("caption set", [source.name for source in self.captions]),
        ):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise UserError(
                    f"two of the {what}s are called {twice!r}", do="Give each its own: --teacher-name, or NAME=SOURCE"
                )
