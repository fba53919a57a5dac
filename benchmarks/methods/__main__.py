"""What is measured, and what comes of it: `python -m benchmarks.methods FASHION_PARQUET`, or `--quick`.

Nothing has to come out: which methods pay is what is asked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.inheritance.material import Material, Teaching, draw_products, teach, write_architectures, write_shards
from benchmarks.methods.students import KINDS, Course, Students, scores
from benchmarks.record import RESULTS, finish, machine, say, spread, versions
from clip_models import load_model
from demo.pool import run_side_by_side
from shards import UserError

_BENCH = Path(__file__).parents[2] / ".bench"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done."""

    train_rows: int
    test_rows: int
    teaching: Teaching
    course: Course


FULL = Sizes(train_rows=20_000, test_rows=1000, teaching=Teaching(steps=300), course=Course(seconds=60))
QUICK = Sizes(
    train_rows=384,
    test_rows=64,
    teaching=Teaching(steps=4, batch_size=32),
    course=Course(seconds=0.5, batch_size=16, super_batch=32, seeds=(0,), scales=(30.0, 100.0), audition_steps=2),
)


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.methods", description=__doc__)
    parser.add_argument("data", nargs="?", help="a Parquet file of product photos: title, article_type, split, jpeg")
    parser.add_argument("--work", type=Path, default=_BENCH / "methods", help="goes on from what is there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on drawn scenes; nothing is judged")
    parser.add_argument("--rows", type=int, default=FULL.train_rows, help="photos to train on")
    parser.add_argument("--teacher-steps", type=int, default=FULL.teaching.steps, help="steps of 128 photos")
    parser.add_argument("--seconds", type=float, default=FULL.course.seconds, help="CPU seconds of each student")
    args = parser.parse_args()
    if args.data is None and not args.quick:
        parser.error("the photos are missing: give a Parquet file, or --quick")
    chosen = Sizes(
        train_rows=args.rows,
        test_rows=FULL.test_rows,
        teaching=Teaching(steps=args.teacher_steps),
        course=replace(FULL.course, seconds=args.seconds),
    )
    work, sizes = (_BENCH / "quick" / "methods", QUICK) if args.quick else (args.work, chosen)
    if args.quick:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n")
    began, before = time.monotonic(), machine()
    try:
        data = args.data or draw_products(work / "drawn.parquet", sizes.train_rows, sizes.test_rows)
        body = _measure(data, work, sizes)
    except UserError as error:
        say(str(error))
        return 2
    body = {
        "machine": before,
        "versions": versions("clipstill", "numpy", "open_clip_torch", "torch"),
        "seconds": time.monotonic() - began,
        **body,
    }
    return finish(_BENCH / "quick" if args.quick else RESULTS, "methods", body, [], write_page=None, judged=False)


def _measure(data: str, work: Path, sizes: Sizes) -> dict[str, Any]:
    material = Material(work.absolute())
    counts = write_shards(material, data, sizes.train_rows, sizes.test_rows)
    write_architectures(material)
    say("teacher and cache")
    teach(material, sizes.teaching)
    teacher = scores(load_model(material.teacher), material)
    say(f"  its own top-1 {teacher['top1']:.1f} %, recall at 5 {teacher['recall5']:.1f} %")
    students = Students(material, sizes.course)
    students.write_architecture()
    say("audition")
    scale = students.hear()
    own = float(load_model(material.teacher).model.logit_scale.detach().exp())
    say(f"  found the scale {scale:g}, its own is {own:.1f}")
    say("students")
    run_side_by_side("students", students.jobs(scale), len(os.sched_getaffinity(0)))
    found = students.scores()
    kinds: dict[str, dict[str, Any]] = {
        kind: {
            **{name: spread([one[name] for one in found[kind]]) for name in ("top1", "recall5", "cpu_seconds")},
            "steps": [one["steps"] for one in found[kind]],
        }
        for kind in KINDS
    }
    for kind, one in kinds.items():
        figures = ", ".join(
            f"{name} {one[name]['median']:.1f} ({one[name]['low']:.1f} to {one[name]['high']:.1f})"
            for name in ("top1", "recall5", "cpu_seconds")
        )
        say(f"  {kind:12} {figures}, steps {one['steps']}")
    return {
        "data": counts,
        "teaching": asdict(sizes.teaching),
        "course": asdict(sizes.course),
        "teacher": teacher,
        "scale": scale,
        "kinds": kinds,
    }


if __name__ == "__main__":
    sys.exit(main())
