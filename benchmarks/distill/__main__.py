"""What is measured, and what has to come out: `python -m benchmarks.distill [--quick]`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.distill import curves
from benchmarks.distill.contenders import AFFINITY, CLIPA, LIT, METHODS, ONLINE, STORED, Student
from benchmarks.distill.curves import Course
from benchmarks.distill.material import architecture, photo_material
from benchmarks.distill.page import write_page
from benchmarks.distill.shares import step_shares
from benchmarks.distill.speed import SpeedBenchmark, Trial
from benchmarks.record import RESULTS, Goal, finish, machine, say, versions
from clip_models import Precision

_BENCH = Path(__file__).parents[2] / ".bench"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. `online` has a smaller batch where live teachers are slow; its plain steps have it too.

    `methods` are compared on a student of their own (TinyCLIP's ViT-39M/16): LiT's share is that of the text tower in
    the whole, so it can be large only where this is small. None: a tiny one.
    """

    samples: int
    stored: Trial
    online: Trial
    methods: Trial
    student: str | None = "TinyCLIP-ViT-39M-16-Text-19M"
    online_kinds: int = len(ONLINE)
    precision: Precision = "fp32"
    profiled: int = 3
    views: int = 2
    course: Course = field(default_factory=Course)


CPU = Sizes(
    samples=512,
    stored=Trial(batch_size=32, rounds=8),
    online=Trial(batch_size=8, rounds=3),
    methods=Trial(batch_size=64, rounds=2),
)
GPU = Sizes(
    samples=4096,
    stored=Trial(batch_size=512, rounds=7, steps=60),
    online=Trial(batch_size=512, rounds=3, steps=20),
    methods=Trial(batch_size=512, rounds=5, steps=20),
    precision="bf16",
    profiled=10,
)
QUICK = Sizes(
    samples=32,
    stored=Trial(batch_size=4, rounds=2),
    online=Trial(batch_size=2, rounds=1),
    methods=Trial(batch_size=2, rounds=1),
    student=None,
    online_kinds=2,
    profiled=2,
    course=Course(samples=128, batch_size=16, steps=24, teacher_steps=20),
)


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.distill", description=__doc__)
    parser.add_argument("--only", choices=["methods"], help="measure these anew, and leave the rest of the result")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once; nothing is judged")
    args = parser.parse_args()
    began, before = time.monotonic(), machine()
    cuda = torch.cuda.is_available()
    sizes = QUICK if args.quick else GPU if cuda else CPU
    if args.only:
        body = _only_methods(sizes)
    else:
        body = {
            "machine": before,
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "versions": versions("clipstill", "numpy", "open_clip_torch", "torch"),
            **_measure(sizes),
            "seconds": time.monotonic() - began,
        }
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "distill", body, _goals(body), write_page=write_page, judged=not args.quick)


def _measure(sizes: Sizes) -> dict[str, Any]:
    work = _fresh()
    say("loss curves")
    figures = curves.measure(work / "curves", sizes.course)
    for dtype, found in figures["differences"].items():
        say(
            f"  {f'{dtype} cache, off the live teacher by':36} {found['first']:.1e} at first, "
            f"{found['mean']:.1e} in the mean, {found['largest']:.1e} at most, {found['end']:.1e} in the end"
        )
    shards, cache = photo_material(work / "photos", _BENCH / "photos", sizes.samples, sizes.views)
    student = Student(shards=shards, cache=cache, views=sizes.views, precision=sizes.precision)
    say("steps from the cache")
    bench = SpeedBenchmark(STORED, student, sizes.stored)
    stored = _shown(bench.measure())
    say("parts of a step")
    shares = step_shares(bench.contenders[AFFINITY], sizes.profiled)
    for name, share in shares["parts"].items():
        say(f"  {name:36} {share:10.2%}")
    bench.close()
    del bench
    say("steps beside live teachers")
    bench = SpeedBenchmark(dict(list(ONLINE.items())[: sizes.online_kinds]), student, sizes.online)
    online = _shown(bench.measure())
    bench.close()
    methods = _methods(work, student, sizes)
    shutil.rmtree(work)
    body = {
        "student": student.model,
        "precision": student.precision,
        "threads": torch.get_num_threads(),
        "stored": stored,
        "online": online,
        "methods": methods,
        "shares": shares,
        "curves": figures,
    }
    return body


def _methods(work: Path, student: Student, sizes: Sizes) -> dict[str, Any]:
    """How fast the methods' steps are, beside the ordinary one; with the machine, for it may be measured alone."""
    say("methods, beside the ordinary distilled step")
    before = machine()
    small: dict[str, Any] = {"embed_dim": 64, "image_size": 224, "width": 64, "layers": 1, "context": 77}
    model = sizes.student or architecture(work / "student.json", **small)
    bench = SpeedBenchmark(METHODS, replace(student, model=model), sizes.methods, AFFINITY)
    found = _shown(bench.measure())
    bench.close()
    return {"student": sizes.student, "machine": before, **found}


def _only_methods(sizes: Sizes) -> dict[str, Any]:
    """A published result with its methods measured anew."""
    standing = RESULTS / "distill.json"
    body: dict[str, Any] = json.loads(standing.read_text())
    work = _fresh()
    shards, cache = photo_material(work / "photos", _BENCH / "photos", sizes.samples, sizes.views)
    student = Student(shards=shards, cache=cache, views=sizes.views, precision=sizes.precision)
    body["methods"] = _methods(work, student, sizes)
    shutil.rmtree(work)
    return {name: value for name, value in body.items() if name not in {"benchmark", "taken", "goals"}}


def _fresh() -> Path:
    work = _BENCH / "distill"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    return work


def _goals(body: dict[str, Any]) -> list[Goal]:
    stored, methods, figures = body["stored"], body["methods"], body["curves"]
    times = {name: found["share_of_ordinary"]["median"] for name, found in methods["kinds"].items()}
    share = stored["kinds"][AFFINITY]["share_of_plain"]["median"]
    rounded, exact = (figures["differences"][dtype] for dtype in ("float16", "float32"))
    return [
        Goal(name="images/s of a step from the cache (affinity), share of plain CLIP's", value=share, at_least=0.98),
        Goal(name="samples/s of LiT from the cache, times an ordinary distilled step's", value=times[LIT], at_least=20),
        Goal(name="samples/s of CLIPA's first stage, times the same", value=times[CLIPA], at_least=3),
        Goal(name="steps compared, cached beside online", value=figures["steps"], at_least=200),
        Goal(name="loss fell by, in these steps", value=figures["learned"], at_least=0.1),
        Goal(name="loss of the first step, cached off online by", value=rounded["first"], at_most=1e-4),
        Goal(name="loss of any step, cached off online by", value=rounded["largest"], at_most=5e-3),
        Goal(name="loss of any step, float32 cache off online by", value=exact["largest"], at_most=1e-4),
    ]


def _shown(figures: dict[str, Any]) -> dict[str, Any]:
    for name, found in figures["kinds"].items():
        rate = found["images_per_second"]
        of, share = next((key.rpartition("_")[2], found[key]) for key in found if key.startswith("share_of_"))
        say(
            f"  {name:36} {rate['median']:10.4g} images/s ({rate['low']:.4g} to {rate['high']:.4g}), "
            f"{share['median']:.3f} of {of} ({share['low']:.3f} to {share['high']:.3f}), {found['memory_gb']:.2f} GB"
        )
    return figures


if __name__ == "__main__":
    sys.exit(main())
