"""What is trained, and what has to come out: `python -m benchmarks.inheritance FASHION_PARQUET`, or `--quick`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.inheritance.material import (
    STUDENT,
    TEACHER,
    Material,
    Teaching,
    draw_products,
    teach,
    write_architectures,
    write_shards,
)
from benchmarks.inheritance.page import write_page
from benchmarks.inheritance.students import FIGURES, KINDS, Course, Students, teacher_score
from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions
from demo.pool import run_side_by_side
from shards import Folder, UserError
from shards.fingerprint import first_difference

_BENCH = Path(__file__).parents[2] / ".bench"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done: with so many photos the students' steps go through both views."""

    train_rows: int
    test_rows: int
    teaching: Teaching
    course: Course


FULL = Sizes(
    train_rows=20_000,
    test_rows=2000,
    teaching=Teaching(steps=700),
    course=Course(steps=240, every=40, pruning=80),
)
QUICK = Sizes(
    train_rows=192,
    test_rows=64,
    teaching=Teaching(steps=4, batch_size=32),
    course=Course(steps=6, every=3, pruning=3, batch_size=16, seeds=(0,)),
)


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.inheritance", description=__doc__)
    parser.add_argument("data", nargs="?", help="a Parquet file of product photos: title, article_type, split, jpeg")
    parser.add_argument("--work", type=Path, default=_BENCH / "inheritance", help="goes on from what is there")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on drawn scenes; nothing is judged")
    args = parser.parse_args()
    if args.quick:
        work, sizes = _BENCH / "quick" / "inheritance", QUICK
        shutil.rmtree(work, ignore_errors=True)
    else:
        work, sizes = args.work, FULL
    if args.data is None and not args.quick:
        parser.error("the photos are missing: give a Parquet file, or --quick")
    began, before = time.monotonic(), machine()
    try:
        data = args.data or draw_products(work / "drawn.parquet", sizes.train_rows, sizes.test_rows)
        body, goals = _measure(data, work, sizes)
    except UserError as error:
        say(str(error))
        return 2
    body = {
        "machine": before,
        "versions": versions("clipstill", "numpy", "open_clip_torch", "torch"),
        "seconds": time.monotonic() - began,
        **body,
    }
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "inheritance", body, goals, write_page=write_page, judged=not args.quick)


def _measure(data: str, work: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Goal]]:
    _claim(work, sizes)
    material = Material(work.absolute())
    counts = _timed("shards", lambda: write_shards(material, data, sizes.train_rows, sizes.test_rows))
    write_architectures(material)
    _timed("teacher and cache", lambda: teach(material, sizes.teaching))
    teacher = _timed("the teacher's score", lambda: teacher_score(material))
    students = Students(material, sizes.course)
    jobs = students.jobs()
    if jobs:
        _timed("students", lambda: run_side_by_side("students", jobs, len(os.sched_getaffinity(0))))
    scores = students.scores()
    steps = sorted(map(int, scores["scratch"][sizes.course.seeds[0]]["moments"]))
    kinds = {kind: _over_seeds(list(scores[kind].values()), steps) for kind in KINDS}
    body = {
        "data": counts,
        "architectures": {"teacher": list(map(asdict, TEACHER)), "student": list(map(asdict, STUDENT))},
        "teaching": asdict(sizes.teaching),
        "course": asdict(sizes.course),
        "steps": steps,
        "teacher": teacher,
        "kinds": kinds,
        "pruning": [scores["automatic"][seed]["pruning"] for seed in sizes.course.seeds],
    }
    return body, _goals(body)


def _claim(work: Path, sizes: Sizes) -> None:
    """Write the sizes into the work folder, or refuse one that was begun with others."""
    work.mkdir(parents=True, exist_ok=True)
    # All that lies here can be made again.
    (work / ".gitignore").write_text("*\n")
    wanted = json.loads(json.dumps(asdict(sizes)))
    if (work / "sizes.json").exists():
        difference = first_difference(json.loads((work / "sizes.json").read_text()), wanted)
        if difference:
            raise UserError(f"this was begun with other sizes: {difference}", where=str(work), do="Give another --work")
    else:
        Folder(work).publish("sizes.json", json.dumps(wanted, indent=1).encode())


def _over_seeds(runs: list[dict[str, Any]], steps: list[int]) -> dict[str, Any]:
    """Each figure at each of `steps`, and each size, over the seeds."""
    return {
        "figures": {
            name: [spread([run["moments"][str(step)][name] for run in runs]) for step in steps] for name in FIGURES
        },
        "sizes": {
            name: spread([run[name] for run in runs])
            for name in ("parameters", "without_token_embedding", "attention_and_mlp")
        },
    }


_GOALS = {"top1": "zero-shot top-1", "image_to_text": "image→text R@5", "text_to_image": "text→image R@5"}


def _goals(body: dict[str, Any]) -> list[Goal]:
    """That the ranges over seeds stay apart, from the first moment at which the sizes are the same."""
    goals = []
    sample = 100 / body["data"]["test"]
    for kind, since in (("manual", 1), ("automatic", body["course"]["pruning"])):
        for name, said in _GOALS.items():
            leads = [
                ours["low"] - scratch["high"]
                for step, ours, scratch in zip(
                    body["steps"],
                    body["kinds"][kind]["figures"][name],
                    body["kinds"]["scratch"]["figures"][name],
                    strict=True,
                )
                if step >= since
            ]
            lead = f"{kind}'s lowest {said} over scratch's highest"
            goals.append(Goal(name=f"{lead}, the least at any moment, points", value=min(leads), at_least=sample))
            goals.append(Goal(name=f"{lead}, at the end, points", value=leads[-1], at_least=sample))
    kept, wanted = (body["kinds"][kind]["sizes"]["attention_and_mlp"] for kind in ("automatic", "manual"))
    goals.append(
        Goal(name="automatic's attention and MLPs, share of manual's", value=kept["high"] / wanted["low"], at_most=1.05)
    )
    return goals


def _timed(what: str, work: Callable[[], Any]) -> Any:
    say(what)
    began = time.monotonic()
    value = work()
    say(f"  {time.monotonic() - began:.1f} s")
    return value


if __name__ == "__main__":
    sys.exit(main())
