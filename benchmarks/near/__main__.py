"""What is measured, and what has to come out: `python -m benchmarks.near [--quick]`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageEnhance

from benchmarks.ingest.images import jpeg, photo
from benchmarks.near.page import write_page
from benchmarks.near.search import KINDS, made
from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions
from shards.near import NEAR, image_hash, near_groups

_BENCH = Path(__file__).parents[2] / ".bench"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    hashes: int = 1_000_000
    distances: tuple[int, ...] = (2, 4, 6)
    rounds: int = 3
    checked: int = 20_000
    photos: int = 100


FULL = Sizes()
QUICK = Sizes(hashes=20_000, distances=(4,), rounds=1, checked=2000, photos=5)


def searches(sizes: Sizes) -> dict[str, Any]:
    """Each kind of hashes at each distance, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(sizes.rounds):
        for kind in KINDS:
            for distance in sizes.distances:
                command = [sys.executable, "-m", "benchmarks.near.search", kind, str(sizes.hashes), str(distance)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                runs.setdefault(f"{kind}, {distance} bits", []).append(json.loads(done.stdout))
    figures = {}
    for name, all_runs in runs.items():
        columns = {key: spread([run[key] for run in all_runs]) for key in ("seconds", "cpu", "peak", "peak_before")}
        figures[name] = columns | {key: all_runs[0][key] for key in ("groups", "largest", "found")}
        say(f"  {name:16} {columns['seconds']['median']:6.1f} s, {columns['peak']['median'] / 1e6:.0f} MB")
    return figures


def exactness(sizes: Sizes) -> dict[str, bool]:
    """Whether groups are those of all pairs compared, by kind and distance."""
    same = {}
    for kind in KINDS:
        for distance in sizes.distances:
            hashes, _, _ = made(kind, sizes.checked, distance)
            equal = near_groups(hashes, distance) == _by_every_pair(hashes, distance)
            same[f"{kind}, {distance} bits"] = bool(equal.all())
    return same


def _by_every_pair(hashes: np.ndarray, distance: int) -> np.ndarray:
    """The first of each hash's group, each hash compared with all."""
    group = np.full(len(hashes), -1)
    for first in range(len(hashes)):
        reached = [first] if group[first] < 0 else []
        group[reached] = first
        while reached:
            near = (np.bitwise_count(hashes ^ hashes[reached.pop()]) <= distance) & (group < 0)
            group[near] = first
            reached += np.flatnonzero(near).tolist()
    return group


def copies(sizes: Sizes) -> dict[str, Any]:
    """How many bits copies of a photo are away from it, as shares within the usual distance; what a hash costs."""
    changed: dict[str, list[int]] = {}
    hashes: list[int] = []
    spent = 0.0
    for number in range(sizes.photos):
        original = photo(number, 640, 480)
        data = jpeg(original, 92)
        began = time.process_time()
        own = image_hash(data)
        spent += time.process_time() - began
        hashes.append(own)
        for name, image, quality in (
            ("quality 50", original, 50),
            ("half the size, quality 80", original.resize((320, 240)), 80),
            ("1 % cut off each side", original.crop((6, 5, 634, 475)), 85),
            ("brighter by 15 %", ImageEnhance.Brightness(original).enhance(1.15), 85),
        ):
            changed.setdefault(name, []).append((own ^ image_hash(jpeg(image, quality))).bit_count())
    strangers = [(one ^ other).bit_count() for at, one in enumerate(hashes) for other in hashes[:at]]
    within = {name: float((np.array(bits) <= NEAR).mean()) for name, bits in changed.items()}
    within["another photo"] = float((np.array(strangers) <= NEAR).mean())
    return {"within": within, "milliseconds": 1000 * spent / sizes.photos}


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.near", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once; nothing is judged")
    args = parser.parse_args()
    sizes = QUICK if args.quick else FULL
    began, before = time.monotonic(), machine()
    say(f"{sizes.hashes:,} hashes")
    searched = searches(sizes)
    say(f"every pair of {sizes.checked:,}")
    same = exactness(sizes)
    say("copies of photos")
    copied = copies(sizes)
    body = {
        "machine": before,
        "versions": versions("imagehash", "numpy", "pillow", "scipy"),
        "seconds": time.monotonic() - began,
        "hashes": sizes.hashes,
        "checked": sizes.checked,
        "distance": NEAR,
        "searches": searched,
        "same_as_every_pair": same,
        "copies": copied,
    }
    usual = [figures for name, figures in searched.items() if name.endswith(f" {NEAR} bits")]
    goals = [
        Goal(name=f"seconds, {NEAR} bits, the slowest", value=max(f["seconds"]["median"] for f in usual), at_most=120),
        Goal(name="MB of memory, the most", value=max(f["peak"]["high"] for f in searched.values()) / 1e6, at_most=600),
        Goal(name="share of planted pairs found", value=min(f["found"] for f in searched.values()), at_least=1),
        Goal(name=f"groups of {sizes.checked:,} are those of every pair", value=float(all(same.values())), at_least=1),
    ]
    _BENCH.mkdir(exist_ok=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "near", body, goals, write_page=write_page, judged=not args.quick)


if __name__ == "__main__":
    sys.exit(main())
