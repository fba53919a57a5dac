"""What is measured, and what has to come out: `python -m benchmarks.manifest [--quick] [--shards N]`."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, Goal, finish, machine, say, spread, versions
from shards import FileEntry, ShardRecord
from shards.dataset import Stage, publish_whole
from shards.record import MANIFEST, RECORDS
from shards.storage import Folder

_BENCH = Path(__file__).parents[2] / ".bench"
_ROUNDS = 5
_SAMPLES, _ROWS = 9000, 10_000
"""Of a shard."""
_CAUSES = (
    "dns",
    "connect",
    "tls",
    "timeout",
    "http_403",
    "http_404",
    "http_410",
    "http_500",
    "not_an_image",
    "truncated",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.manifest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a thousand shards once, judged by nobody")
    parser.add_argument("--shards", type=int, default=100_000)
    args = parser.parse_args(arguments)
    shards, rounds = (1000, 1) if args.quick else (args.shards, _ROUNDS)
    began = time.monotonic()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="bench-manifest-") as scratch:
        body, goals = _measure(Path(scratch), shards, rounds)
    body |= {"machine": before, "versions": versions("pydantic", "pyarrow"), "seconds": time.monotonic() - began}
    _BENCH.mkdir(exist_ok=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "manifest", body, goals, write_page=None, judged=not args.quick)


def _measure(scratch: Path, shards: int, rounds: int) -> tuple[dict[str, Any], list[Goal]]:
    body: dict[str, Any] = {"shards": shards}
    goals = []
    for kind in ("own", "adopted"):
        say(f"{shards:,} records of a dataset: {kind}")
        size = _write(Folder(scratch / kind), shards, adopted=kind == "adopted")
        runs = [_run(scratch / kind) for _ in range(rounds)]
        assert all(run["samples"] == shards * _SAMPLES for run in runs)
        figures = {name: spread([run[name] for run in runs]) for name in ("seconds", "cpu", "memory")}
        body[kind] = {"manifest_bytes": size, **figures}
        say(json.dumps(body[kind]))
        goals += [
            Goal(name=f"seconds to open it, {kind}", value=figures["seconds"]["median"], at_most=2),
            Goal(name=f"MB of memory, {kind}", value=figures["memory"]["high"] / 1e6, at_most=500),
        ]
    return body, goals


def _write(folder: Folder, shards: int, *, adopted: bool) -> int:
    """The records of so many shards, and their manifest; returns the bytes of that."""
    records = Path(folder.child(RECORDS).url)
    records.mkdir(parents=True)
    with (records / MANIFEST).open("w") as manifest:
        for shard in range(shards):
            record = _adopted(shard) if adopted else _own(shard)
            manifest.write(record.to_json() + "\n")
            # Names are what is listed; of what is within them the manifest tells.
            (records / str(record.name)).touch()
    stage = Stage(name="many", shards=shards, rows=shards * _ROWS, adopted=("/data/*.tar",) if adopted else ())
    publish_whole(folder, stage)
    return (records / MANIFEST).stat().st_size


def _own(shard: int) -> ShardRecord:
    endings = {".tar": 300_000_000, ".index.arrow": 700_000, "_stats.json": 900}
    files = [FileEntry(f"{shard:05d}{end}", size + shard, _hash(shard, end)) for end, size in endings.items()]
    stats = {"rows": _ROWS, **{f"failed.{cause}": 10 + shard % 97 for cause in _CAUSES}}
    return ShardRecord(shard, "0123456789abcdef", "", _SAMPLES, tuple(files), stats, (f"{shard:05d}.parquet",))


def _adopted(shard: int) -> ShardRecord:
    at = f"/data/cc12m-wds/cc12m-train-{shard:06d}.tar"
    tar = FileEntry(f"{shard:05d}.tar", 300_000_000 + shard, _hash(shard, "tar"), at, 1_700_000_000_000_000_000 + shard)
    index = FileEntry(f"{shard:05d}.index.arrow", 700_000 + shard, _hash(shard, "index"))
    stats = {"rows": _ROWS, "failed.no_caption": 700 + shard % 97, "other..npy": 3}
    mark = _hash(shard, "mark")[:16]
    return ShardRecord(shard, mark, "", _SAMPLES, (tar, index), stats, (f"{shard:05d}.parquet",))


def _hash(shard: int, what: str) -> str:
    return hashlib.sha256(f"{shard} {what}".encode()).hexdigest()


def _run(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.manifest.run", str(folder)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
