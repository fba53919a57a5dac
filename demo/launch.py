"""Starting the demo, or a smoke test: what cannot be is said before anything slow is imported."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.settings import DemoSettings
from shards import Folder, UserError
from shards.places import refuse_other_things
from teacher_cache.teachers.load import refuse_spec

if TYPE_CHECKING:
    from distill.run_folder import Result
    from distill.settings import RunSettings

_BEGINNINGS = {"settings.json", "port.json"}
"""What a demo writes first into its `results/`, which others have too."""


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
