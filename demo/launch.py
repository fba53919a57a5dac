"""Starting the demo, or a smoke test: what cannot be is said before anything slow is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards import Folder, UserError
from shards.places import refuse_other_things
from teacher_cache.teachers.load import refuse_spec

if TYPE_CHECKING:
    from distill.run_folder import Result
    from distill.settings import RunSettings

_BEGINNINGS = {"settings.json", "port.json"}
"""What a demo writes first into its `results/`, which others have too."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """The size of the demo. `teacher` is a spec as in `load_teacher`; None trains one from scratch."""

    out: str
    teacher: str | None = None
    train_rows: int = 6000
    held_out_rows: int = 1000
    shard_size: int = 500
    pixels: int = 64
    views: int = 4
    teacher_steps: int = 400
    student_steps: int = 160
    batch_size: int = 64
    seeds: tuple[int, ...] = (0, 1, 2)
    losses: dict[str, float] = field(default_factory=lambda: {"affinity": 1.0, "fd": 1000.0, "contrastive": 1.0})


def run_demo(settings: DemoSettings, workers: int) -> Path:
    """Run the demo in `settings.out`, when no other process is at it there; returns its page.

    Raises `UserError` if other things are there, or a demo of other settings, or if there is no such teacher.
    """
    out = Folder(settings.out)
    begun = _BEGINNINGS & set(out.child("results").names())
    refuse_other_things(out, "a demo", {"results"} if begun else ())
    if settings.teacher is not None:
        refuse_spec(settings.teacher)
    from demo.run import Demo  # noqa: PLC0415 - brings torch

    with out.alone():
        return Demo(settings, workers).run()


def run_smoke(recipe: Mapping[str, Any], given: Mapping[str, Any], start: Callable[[RunSettings], Result]) -> str:
    """As `demo.smoke.smoke`, if no other things are in `given["out"]`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a smoke test runs in one process", where="--smoke", do="Leave out torchrun, or --smoke")
    if ("shards" in given) < ("cache" in given):
        raise UserError("a cache was given, and no shards", where="--smoke", do="Give both, or neither")
    if "out" in given:
        refuse_other_things(Folder(given["out"]), "a smoke test", {"shards", "run"})
    from demo.smoke import smoke  # noqa: PLC0415 - brings torch

    return smoke(recipe, given, start)
