"""What is measured, and what has to come out: `python -m benchmarks.scale [--quick] [--scratch FOLDER]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.distill.material import architecture
from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions
from benchmarks.scale.driver import FINGERPRINT
from benchmarks.scale.material import real_shard, simulate, simulate_cache, write_cut_otherwise
from benchmarks.scale.store import absent, environment_of, fill, serving
from shards import Dataset

_BENCH = Path(__file__).parents[2] / ".bench"
_THOUSANDTH = 1000


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """`shards` of `rows` samples each, LAION-400M's; `by_key` shards of another cut; `tasks` of the driver."""

    shards: int = 41_000
    rows: int = 10_000
    by_key: int = 1000
    tasks: int = 100_000
    batch: int = 4096
    rounds: int = 3
    may_install: bool = True


QUICK = Sizes(shards=1200, rows=100, by_key=4, tasks=300, batch=256, rounds=1, may_install=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once; nothing is judged")
    parser.add_argument("--scratch", help="where 6 GB are written (default: $TMPDIR)")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    began, before = time.monotonic(), machine()
    with tempfile.TemporaryDirectory(prefix="bench-scale-", dir=args.scratch) as scratch:
        body, goals = _measure(Path(scratch), sizes)
    body |= {"machine": before, "versions": versions("pyarrow", "ray", "torch"), "seconds": time.monotonic() - began}
    _BENCH.mkdir(exist_ok=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "scale", body, goals, write_page=None, judged=not args.quick)


def _measure(scratch: Path, sizes: Sizes) -> tuple[dict[str, Any], list[Goal]]:
    say(f"making {sizes.shards:,} shards of {sizes.rows:,} samples, which are one under many names")
    shard = real_shard(scratch / "real", sizes.rows)
    for name in ("many", "more"):
        simulate(scratch / name, shard, sizes.shards if name == "many" else sizes.shards // 4)
        simulate_cache(scratch / f"{name}-cache", Dataset.open(scratch / name))
    many = Dataset.open(scratch / "many")
    simulate_cache(scratch / "lacking-cache", many, lambda number: number % _THOUSANDTH == _THOUSANDTH // 2)
    architecture(scratch / "student.json", embed_dim=16, image_size=32, width=64, layers=1, context=16)
    uncut = write_cut_otherwise(scratch, shard, sizes.by_key)
    runs: Mapping[str, dict[str, Any]] = {
        "error": {"shards": ["many"], "cache": ["many-cache"]},
        "skip": {"shards": ["many"], "cache": ["lacking-cache"], "join": "skip"},
        "none": {"shards": ["many"], "cache": ["lacking-cache"], "join": "none"},
        "two datasets": {"shards": ["many", "more"], "cache": ["many-cache", "more-cache"], "weights": {"more": 0.5}},
        "by key, the first time": {"shards": [uncut], "cache": ["cut-cache"], "join": "none"},
        "by key, again": {"shards": [uncut], "cache": ["cut-cache"], "join": "none"},
    }
    body: dict[str, Any] = {"shards": sizes.shards, "samples": sizes.shards * sizes.rows, "first_batch": {}}
    goals = []
    for name, given in runs.items():
        first = name.endswith("first time")
        found = [_first_batch(scratch, given, sizes.batch) for _ in range(1 if first else sizes.rounds)]
        figures = {key: spread([one[key] for one in found]) for key in found[0]}
        body["first_batch"][name] = figures
        say(f"{name}: {figures['seconds']['median']:.1f} s, {figures['memory']['high'] / 1e9:.2f} GB")
        if "key" not in name:
            goals += [
                Goal(name=f"seconds to the first batch, {name}", value=figures["seconds"]["median"], at_most=60),
                Goal(name=f"GB of memory, {name}", value=figures["memory"]["high"] / 1e9, at_most=4),
                Goal(name=f"bytes a sample, {name}", value=figures["bytes_a_sample"]["high"], at_most=1),
            ]
    body["driver"] = _driver(scratch / "driver", sizes.tasks, 2)
    body["resume"] = _driver(scratch / "driver", sizes.tasks, 0)
    goals += [
        Goal(name="tasks/s of the driver", value=sizes.tasks / body["driver"]["seconds"], at_least=300),
        Goal(name="GB of memory, driver", value=body["driver"]["memory"] / 1e9, at_most=1),
        Goal(name="seconds to find all of them done", value=body["resume"]["seconds"], at_most=10),
    ]
    reason = absent(_BENCH / "seaweedfs", may=sizes.may_install)
    if reason:
        say(f"no resume on an S3 server: {reason}")
        return body, goals
    with serving(_BENCH / "seaweedfs", scratch / "server") as endpoint:
        say(f"putting what {sizes.tasks:,} shards leave on an S3 server")
        fill(endpoint, "many", sizes.tasks, FINGERPRINT)
        found = [_driver("s3://many", sizes.tasks, 0, environment_of(endpoint)) for _ in range(sizes.rounds)]
    body["resume_on_s3"] = {name: spread([one[name] for one in found]) for name in ("seconds", "cpu", "memory")}
    seconds = body["resume_on_s3"]["seconds"]["median"]
    goals.append(Goal(name="seconds to find all of them done on an S3 server", value=seconds, at_most=10))
    return body, goals


def _first_batch(scratch: Path, given: Mapping[str, Any], batch: int) -> dict[str, float]:
    settings = {"out": str(scratch / "run"), "student": str(scratch / "student.json"), "batch_size": batch, "steps": 10}
    paths = {name: [str(scratch / value) for value in given[name]] for name in ("shards", "cache")}
    environment = {**os.environ, "CLIPSTILL_CACHE": str(scratch / "kept")}
    return _told("first_batch", json.dumps({**settings, **given, **paths}), environment=environment)


def _driver(
    folder: Path | str, tasks: int, workers: int, environment: Mapping[str, str] = os.environ
) -> dict[str, float]:
    found = _told("driver", str(folder), str(tasks), str(workers), environment=environment)
    say(f"driver: {found}")
    return found


def _told(program: str, *arguments: str, environment: Mapping[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", f"benchmarks.scale.{program}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
