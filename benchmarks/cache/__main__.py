"""What is measured, and what has to come out: `python -m benchmarks.cache [--quick]`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cache import gpu, memory, read, size
from benchmarks.cache.build import BuildBenchmark, Trial
from benchmarks.cache.material import photos
from benchmarks.cache.page import write_page
from benchmarks.cache.process import alone
from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions

_BENCH = Path(__file__).parents[2] / ".bench"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured. `memory_shards`: from the smallest cache to the largest, of `times_memory`."""

    build: Trial
    size_shards: int = 2
    size_rows: int = 1000
    errors: int = 2048
    read_shards: int = 32
    read_rows: int = 1000
    read_batches: int = 100
    rival_samples: int = 2000
    rival_reads: int = 1000
    read_rounds: int = 5
    memory_shards: tuple[int, ...] = (128, 1280)
    memory_rows: int = 2048
    times_memory: float = 10
    rendered: int = 1000


FULL = Sizes(build=Trial())
QUICK = Sizes(
    build=Trial(forwards=40, batch_size=8, rounds=1, photos=20),
    size_rows=100,
    errors=256,
    read_shards=4,
    read_rows=300,
    read_batches=10,
    rival_samples=100,
    rival_reads=100,
    read_rounds=1,
    memory_shards=(8, 16),
    memory_rows=256,
    times_memory=0.02,
    rendered=100,
)


class Benchmark:
    """Each method measures one thing and returns its figures; `goals` is what the methods add to."""

    def __init__(self, sizes: Sizes, work: Path, *, quick: bool) -> None:
        self._sizes, self._work, self._quick = sizes, work, quick
        self._photos = _BENCH / "photos"
        self.goals: list[Goal] = []

    def build(self) -> dict[str, Any]:
        """From JPEGs to published files, beside the forward alone."""
        photos(self._photos, self._sizes.build.photos)
        figures = BuildBenchmark(self._work / "build", self._photos, self._sizes.build).measure()
        for way, rates in figures["forwards_per_second"].items():
            say(f"  {way:32} {_shown(rates)} forwards/s")
        ratios = figures["ratio_to_bare"]
        for views in (1, 4):
            ratio = ratios[f"views_{views}"]
            say(f"  {f'{views} views, share of the bare forward':32} {_shown(ratio)}")
            name = f"build, K = {views}: images/s, share of the bare forward's"
            self.goals.append(Goal(name=name, value=ratio["median"], at_least=0.95))
        cost = spread([1 / ratio for ratio in ratios["views_10"]["runs"]])
        say(f"  {'10 views, times ten forwards':32} {_shown(cost)}")
        self.goals.append(Goal(name="cost of K = 10 views, times ten forwards", value=cost["median"], at_most=1.15))
        return {**figures, "ten_views_cost": cost}

    def gpu(self) -> dict[str, Any]:
        """The build where it is meant to run."""
        if not torch.cuda.is_available():
            say("  skipped: torch sees no GPU")
            return {"skipped": "torch sees no GPU"}
        figures, goals = gpu.measure(self._work / "gpu", self._photos, quick=self._quick)
        self.goals += goals
        return figures

    def size(self) -> dict[str, Any]:
        """Bytes on disk, and what they do to logits."""
        stored = size.on_disk(self._work / "size", self._sizes.size_shards, self._sizes.size_rows)
        for dtype, figures in stored.items():
            say(f"  {dtype:32} {figures['bytes_a_sample']:8.0f} bytes a sample, {figures['ratio']:.4f} x payload")
            name = f"bytes on disk, {dtype}, times the embeddings' own"
            self.goals.append(Goal(name=name, value=figures["ratio"], at_most=1.02))
        errors = size.logit_errors((512, 768), self._sizes.errors)
        for row in errors:
            say(f"  {row['dtype']:9} D = {row['width']}: logits move by {row['largest']:.2g}, RMS {row['rms']:.2g}")
        return {"on_disk": stored, "logit_errors": errors}

    def read(self) -> dict[str, Any]:
        """Random samples from the page cache."""
        sizes, folder = self._sizes, self._work / "read"
        read.prepare(folder, sizes.read_shards, sizes.read_rows, sizes.rival_samples)
        figures: dict[str, Any] = alone("read", folder, sizes.read_batches, sizes.rival_reads, sizes.read_rounds)
        rates = figures["samples_per_second"]
        for name, values in rates.items():
            say(f"  {name:32} {_shown(values)} samples/s")
        say(f"  {'first pass over new mappings':32} {figures['first_pass']:10.4g} samples/s")
        name = "read: samples/s a core, one view and two texts of two teachers"
        self.goals.append(Goal(name=name, value=rates["stored"]["median"], at_least=200_000))
        name = "read: samples/s, times the faster of npz and pth.gz"
        self.goals.append(Goal(name=name, value=figures["ratio"]["median"], at_least=30))
        return figures

    def memory(self) -> dict[str, Any]:
        """An epoch of ever larger caches."""
        sizes, folder = self._sizes, self._work / "memory"
        largest = max(sizes.memory_shards)
        views = memory.views_for(sizes.times_memory, largest, sizes.memory_rows)
        apparent = memory.prepare(folder, largest, sizes.memory_rows, views)
        runs = []
        for shards in sizes.memory_shards:
            run = alone("memory", folder, shards)
            run["cache_gb"] = apparent * shards / largest / 1e9
            runs.append(run)
            say(
                f"  {run['cache_gb']:7.1f} GB in {shards:5} shards{'':10} {run['peak_mb']:7.0f} MB at most "
                f"({run['anonymous_mb']:.0f} anonymous, {run['file_mb']:.0f} of files), "
                f"{run['samples_per_second']:.0f} samples/s"
            )
        times = runs[-1]["cache_gb"] / runs[0]["cache_gb"]
        goal = f"peak resident memory of an epoch, times that of a cache 1/{times:.0f} its size"
        self.goals.append(Goal(name=goal, value=runs[-1]["peak_mb"] / runs[0]["peak_mb"], at_most=1.1))
        return {"views": views, "rows_a_shard": sizes.memory_rows, "runs": runs}

    def rendering(self) -> dict[str, Any]:
        """For information."""
        photos(self._photos, self._sizes.build.photos)
        figures: dict[str, Any] = alone("rendering", self._photos, self._sizes.rendered, self._sizes.read_rounds)
        for name, values in figures["samples_per_second"].items():
            say(f"  {name:32} {_shown(values)} samples/s")
        return figures


def _shown(values: dict[str, Any]) -> str:
    return f"{values['median']:10.4g} ({values['low']:.4g} to {values['high']:.4g})"


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.cache", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once; nothing is judged")
    parser.add_argument("--only", nargs="+", help="some parts; the result goes to .bench/ too")
    args = parser.parse_args()
    partial = bool(args.quick or args.only)
    began, before = time.monotonic(), machine()
    body, goals = _measure(QUICK if args.quick else FULL, args.only, quick=args.quick)
    body = {
        "machine": before,
        "versions": versions("clipstill", "numpy", "open_clip_torch", "pyarrow", "torch"),
        "seconds": time.monotonic() - began,
        **body,
    }
    folder = _BENCH / "quick" if partial else RESULTS
    return finish(folder, "cache", body, goals, write_page=None if args.only else write_page, judged=not args.quick)


def _measure(sizes: Sizes, only: list[str] | None, *, quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    work = _BENCH / "cache"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    benchmark = Benchmark(sizes, work, quick=quick)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "build": benchmark.build,
        "gpu": benchmark.gpu,
        "size": benchmark.size,
        "read": benchmark.read,
        "memory": benchmark.memory,
        "rendering": benchmark.rendering,
    }
    body: dict[str, Any] = {}
    for name, measure in parts.items():
        if only is None or name in only:
            say(name)
            body[name] = measure()
            for folder in work.iterdir():
                shutil.rmtree(folder)
    return body, benchmark.goals


if __name__ == "__main__":
    sys.exit(main())
