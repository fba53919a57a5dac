"""What is measured, and what has to come out: `python -m benchmarks.cluster [--quick]`.

Two Ray clusters stand at once on this machine: a raylet with two cores, and two raylets with one each beside a head
that has none. Each command runs on both in turns, and the pairs' ratios are what is judged: whatever else the machine
does, it does to both. Seconds are with joining the cluster and starting the workers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cache.material import SampleBytes, photos, write_samples
from benchmarks.distill.material import architecture
from benchmarks.ingest.certificate import make_certificate
from benchmarks.ingest.server import HOSTS, serving
from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions
from clip_models import create_student, save_model
from ingest import IngestSettings, NetworkSettings, SourceSettings, ingest
from shards.ray_executor import RayExecutor
from shards.ray_machines import Needs
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.teachers import Forward

_BENCH = Path(__file__).parents[2] / ".bench"
_ONE, _TWO = "one of two cores", "two of one core"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """`rows` to fetch in shards of `shard`; `shards` of `samples` each to embed by `model`, None for a tiny one."""

    rows: int = 8000
    shard: int = 200
    shards: int = 12
    samples: int = 32
    model: str | None = "ViT-B-32"
    rounds: int = 3
    pictures: int = 100


QUICK = Sizes(rows=60, shard=10, shards=2, samples=4, model=None, rounds=1, pictures=8)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.cluster", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once; nothing is judged")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    began, before = time.monotonic(), machine()
    # Nobody else is to join, and whoever does is started by this.
    os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}
    _BENCH.mkdir(exist_ok=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as scratch, _clusters() as addresses:
        body, goals = _measure(Path(scratch), addresses, sizes)
    body |= {"machine": before, "versions": versions("ray", "torch"), "seconds": time.monotonic() - began}
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "cluster", body, goals, write_page=None, judged=not args.quick)


@contextlib.contextmanager
def _clusters() -> Iterator[dict[str, str]]:
    """Both, by what they are: their addresses."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - slow to import

    with contextlib.ExitStack() as held:
        addresses = {}
        for name, head, nodes in ((_ONE, 2, 0), (_TWO, 0, 2)):
            # Only specs and records are to lie there.
            store = {"object_store_memory": 100_000_000, "include_dashboard": False}
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": head, **store})
            held.callback(cluster.shutdown)
            for _ in range(nodes):
                cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
            addresses[name] = str(cluster.address)
        yield addresses


def _measure(scratch: Path, addresses: dict[str, str], sizes: Sizes) -> tuple[dict[str, Any], list[Goal]]:
    bodies = photos(_BENCH / "cache" / "photos", sizes.pictures)
    (scratch / "web" / "photos").mkdir(parents=True)
    for number, body in enumerate(bodies):
        (scratch / "web" / "photos" / f"{number:05d}.jpg").write_bytes(body)
    make_certificate(scratch / "web", HOSTS)
    samples = [SampleBytes(body, f"photo {number}") for number, body in enumerate(bodies)]
    rows = [[samples[row % len(samples)] for row in range(sizes.samples)] for _ in range(sizes.shards)]
    write_samples(scratch / "shards", rows)
    tiny = architecture(scratch / "tiny.json", embed_dim=32, image_size=32, width=32, layers=1, context=16)
    model, config = create_student(sizes.model or tiny, 0)
    save_model(model.eval(), config, str(scratch / "teacher"))
    with serving(scratch / "web") as (_, ports):
        listing = scratch / "list.tsv"
        listing.write_text(
            "".join(
                f"photo {row}\thttp://{HOSTS[row % len(HOSTS)]}:{ports['http']}/photos/{row}.jpg\n"
                for row in range(sizes.rows)
            )
        )
        source = SourceSettings(paths=(str(listing),), format="cc3m")
        network = NetworkSettings(allow_addresses=("127.0.0.0/8",), per_host_rate=0)
        out = str(scratch / "out")
        fetching = IngestSettings(source=source, out=out, name="set", shard_size=sizes.shard, network=network)
        teachers = (TeacherSpec(str(scratch / "teacher"), "teacher"),)
        embedding = BuildSettings(
            shards=str(scratch / "shards"),
            cache=out,
            teachers=teachers,
            views=2,
            batch_size=16,
            forward=Forward(device="cpu"),
        )
        # A cache is built by a worker for each machine, with all its cores.
        works: dict[str, Callable[[str], object]] = {
            "ingest": lambda name: ingest(fetching, RayExecutor(2, address=addresses[name])),
            "cache build": lambda name: build_cache(
                embedding,
                RayExecutor(*((1, Needs(cpus=2)) if name == _ONE else (2, Needs())), address=addresses[name]),
            ),
        }
        found: dict[str, Any] = {}
        goals = []
        for name, work in works.items():
            found[name] = _in_turns(work, scratch / "out", sizes.rounds)
            say(f"{name}: {json.dumps(found[name])}")
            goals.append(
                Goal(
                    name=f"{name}: two machines of one core, in times of one of two",
                    value=statistics.median(found[name]["ratios"]),
                    at_most=1.15,
                )
            )
    return found, goals


def _in_turns(work: Callable[[str], object], out: Path, rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {_ONE: [], _TWO: []}
    for round_ in range(rounds):
        # Who is first changes: what one leaves warm serves the other.
        for name in sorted(seconds, reverse=bool(round_ % 2)):
            began = time.monotonic()
            work(name)
            seconds[name].append(time.monotonic() - began)
            shutil.rmtree(out)
    pairs = zip(seconds[_TWO], seconds[_ONE], strict=True)
    return {"ratios": [two / one for two, one in pairs], **{name: spread(runs) for name, runs in seconds.items()}}


if __name__ == "__main__":
    sys.exit(main())
