"""What is measured, and what has to come out: `python -m benchmarks.loader [--quick]`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loader.environments import PACKAGES, command, install
from benchmarks.loader.material import Material, make
from benchmarks.loader.page import write_page
from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions

_BENCH = Path(__file__).parents[2] / ".bench"
_HOME = _BENCH / "loader"

CONTENDERS = ("ours", "open_clip", "torchvision", "spdl", "dali")
NARROW, WIDE = (0.9, 1.0), (0.08, 1.0)
"""TinyCLIP's crops, and the usual ones of ImageNet."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rounds: int = 3
    wide_rounds: int = 2
    seconds: float = 3.0
    batch: int = 64
    batches: tuple[int, ...] = (32, 256, 3968)


FULL = Sizes()
QUICK = Sizes(rounds=1, wide_rounds=1, seconds=0.5, batches=(32,))


class Benchmark:
    """`absent`: contenders that cannot be had here, and why."""

    def __init__(self, sizes: Sizes, material: Material, absent: dict[str, str]) -> None:
        self._sizes, self._material, self.absent = sizes, material, absent
        self._present = [name for name in CONTENDERS if name not in absent]

    def rates(self, scale: tuple[float, float], cores: Sequence[int], rounds: int) -> dict[str, Any]:
        """Samples a second of all contenders, in turn; ours with a cache where its views are those."""
        found: dict[str, list[dict[str, float]]] = {name: [] for name in self._present}
        for _ in range(rounds):
            for name in self._present:
                found[name].append(self._run(name, scale=scale, cores=cores))
        figures: dict[str, Any] = {
            "samples_per_second": {name: spread([run["rate"] for run in runs]) for name, runs in found.items()}
        }
        for name, values in figures["samples_per_second"].items():
            say(f"  {name:16} {_shown(values)} samples/s")
        if "open_clip" in found:
            pairs = list(zip(found["ours"], found["open_clip"], strict=True))
            figures["ours_to_open_clip"] = spread([ours["rate"] / theirs["rate"] for ours, theirs in pairs])
        if len(cores) == 1:
            figures["cpu_microseconds"] = {name: spread([run["cpu"] for run in runs]) for name, runs in found.items()}
            for name, values in figures["cpu_microseconds"].items():
                say(f"  {name:16} {_shown(values)} µs of CPU")
        return figures

    def batches(self, cores: Sequence[int]) -> dict[str, Any]:
        """Samples a second by batch size."""
        rates = {}
        for batch in self._sizes.batches:
            values = [self._run("ours", scale=NARROW, cores=cores, batch=batch)["rate"] for _ in range(2)]
            rates[str(batch)] = spread(values)
            say(f"  {'batches of ' + str(batch):16} {_shown(rates[str(batch)])} samples/s")
        return rates

    def parts(self, core: int, rounds: int) -> dict[str, Any]:
        """What a sample's microseconds go to."""
        runs = [self._run("ours", scale=NARROW, cores=[core], parts=True) for _ in range(rounds)]
        whole = spread([1e6 / run["rate"] for run in runs])
        parts = {name: spread([run["parts"][name] for run in runs]) for name in runs[0]["parts"]}
        join = next(name for name in parts if name.startswith("join"))
        shares = spread([run["parts"][join] * run["rate"] / 1e6 for run in runs])
        for name, values in {"a sample": whole, **parts}.items():
            say(f"  {name:48} {_shown(values)} µs")
        return {"microseconds": {"a sample": whole, **parts}, "join_share": shares}

    def _run(self, name: str, *, scale: tuple[float, float], cores: Sequence[int], **more: Any) -> dict[str, Any]:
        material, sizes = self._material, self._sizes
        wish = {
            "shards": str(material.shards),
            "tars": material.tars,
            "samples": material.samples,
            "cache": str(material.cache) if scale == NARROW else None,
            "scale": scale,
            "size": 224,
            "cores": len(cores),
            "batch": sizes.batch,
            "seconds": sizes.seconds,
            **more,
        }
        program, environment = command(_HOME, name)
        done = subprocess.run(
            [*program, json.dumps(wish)],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            preexec_fn=lambda: os.sched_setaffinity(0, set(cores)),
        )
        lines = done.stdout.splitlines()
        if done.returncode != 0 or not lines:
            raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(lines[-1])
        return found


def main() -> int:
    parser = argparse.ArgumentParser("benchmarks.loader", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="once and briefly, without peers that are not installed; nothing is judged"
    )
    args = parser.parse_args()
    began, before = time.monotonic(), machine()
    body, goals = _measure(QUICK if args.quick else FULL, quick=args.quick)
    body = {
        "machine": before,
        "versions": versions("clipstill", "open_clip_torch", "opencv-python-headless", "simplejpeg", "torchvision"),
        "packages": {name: list(packages) for name, packages in PACKAGES.items()},
        "seconds": time.monotonic() - began,
        **body,
    }
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "loader", body, goals, write_page=write_page, judged=not args.quick)


def _measure(sizes: Sizes, *, quick: bool) -> tuple[dict[str, Any], list[Goal]]:
    _HOME.mkdir(parents=True, exist_ok=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    absent = {name: reason for name in PACKAGES if (reason := install(_HOME, name, may=not quick)) is not None}
    for reason in dict.fromkeys(absent.values()):
        say(f"{', '.join(name for name in absent if absent[name] == reason)} left out: {reason}")
    material = make(_HOME / ("material-few" if quick else "material"), few=quick)
    benchmark = Benchmark(sizes, material, absent)
    cores = sorted(os.sched_getaffinity(0))
    one, two = cores[-1:], cores[-2:]
    body: dict[str, Any] = {"images": {"count": material.samples, "kilobytes": material.kilobytes}, "absent": absent}
    for name, scale, chosen, rounds in (
        ("one_core", NARROW, one, sizes.rounds),
        ("two_cores", NARROW, two, sizes.rounds),
        ("one_core_wide", WIDE, one, sizes.wide_rounds),
    ):
        say(name)
        body[name] = benchmark.rates(scale, chosen, rounds)
    say("batches")
    body["batches"] = benchmark.batches(two)
    say("parts")
    body["parts"] = benchmark.parts(one[0], sizes.rounds)
    return body, _goals(body)


def _goals(body: dict[str, Any]) -> list[Goal]:
    missing = {"median": float("nan")}
    one, two = (body[name].get("ours_to_open_clip", missing)["median"] for name in ("one_core", "two_cores"))
    return [
        Goal(name="samples/s of one core, times open_clip's pipeline", value=one, at_least=4),
        Goal(name="samples/s of two cores, times open_clip's pipeline", value=two, at_least=5),
        Goal(
            name="cost of joining two teachers, share of the loader's time",
            value=body["parts"]["join_share"]["median"],
            at_most=0.02,
        ),
    ]


def _shown(values: dict[str, Any]) -> str:
    return f"{values['median']:10.4g} ({values['low']:.4g} to {values['high']:.4g})"


if __name__ == "__main__":
    sys.exit(main())
