"""What is measured, and what has to come out: `python -m benchmarks.plan [--quick] [--rows N] [--scratch FOLDER]`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.record import RESULTS, Goal, finish, machine, say, versions

_BENCH = Path(__file__).parents[2] / ".bench"
_FILE_ROWS = 2_000_000
_WORDS = [
    "red",
    "green",
    "photo",
    "of",
    "a",
    "house",
    "by",
    "the",
    "river",
    "vintage",
    "dress",
    "for",
    "sale",
    "image",
    "dog",
    "with",
    "stock",
    "black",
    "white",
]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.plan", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a million rows, judged by nobody")
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--scratch", default=None, help="where the list and its plans lie meanwhile")
    args = parser.parse_args(arguments)
    rows = 1_000_000 if args.quick else args.rows
    began = time.monotonic()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="bench-plan-", dir=args.scratch) as scratch:
        body, goals = _measure(Path(scratch), rows)
    body |= {"machine": before, "versions": versions("numpy", "pyarrow"), "seconds": time.monotonic() - began}
    _BENCH.mkdir(exist_ok=True)
    # All that lies here can be made again.
    (_BENCH / ".gitignore").write_text("*\n")
    folder = _BENCH / "quick" if args.quick else RESULTS
    return finish(folder, "plan", body, goals, write_page=None, judged=not args.quick)


def _measure(scratch: Path, rows: int) -> tuple[dict[str, Any], list[Goal]]:
    listing = scratch / "list"
    say(f"a list of {rows:,} rows")
    _write_list(listing, rows)
    say("planned")
    whole = _run(listing, scratch / "whole")
    whole |= {"disk": _disk(scratch / "whole")}
    say(json.dumps(whole))
    say("killed at half, and gone on with")
    killed = _run(listing, scratch / "killed", until=rows // 2)
    resumed = _run(listing, scratch / "killed")
    say(json.dumps(resumed))
    facts = [json.loads((scratch / name / "dataset.json").read_bytes()) for name in ("whole", "killed")]
    body = {
        "list": {"rows": rows, "bytes": sum(path.stat().st_size for path in listing.iterdir())},
        "whole": whole,
        "killed": killed,
        "resumed": resumed,
        "equal": facts[0] == facts[1],
        "plan_bytes": sum(part["bytes"] for part in facts[0]["parts"]),
    }
    return body, [
        Goal(name="seconds to the first shard", value=whole["first"], at_most=10),
        Goal(name="seconds to the first shard when gone on with", value=resumed["first"], at_most=10),
        Goal(name="MB of memory", value=whole["memory"] / 1e6, at_most=700),
        Goal(name="bytes on disk a row, all shards made", value=sum(whole["disk"].values()) / rows, at_most=19),
        Goal(name="the plan of a run that was killed is the same", value=float(body["equal"]), at_least=1),
    ]


def _run(listing: Path, out: Path, until: int | None = None) -> dict[str, Any]:
    """What the program says of a run, or of one that is killed as soon as so many rows are planned."""
    command = [sys.executable, "-m", "benchmarks.plan.run", str(listing), str(out)]
    said: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said |= json.loads(line)
            if until is not None and said.get("rows", 0) >= until:
                process.kill()
                return said
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return said


def _disk(out: Path) -> dict[str, int]:
    """Bytes of the plan and of the index, as they lie there."""
    files = {name: sum(path.stat().st_size for path in (out / name).iterdir()) for name in ("_plan", "_seen")}
    return {**files, "dataset.json": (out / "dataset.json").stat().st_size}


def _write_list(folder: Path, rows: int) -> None:
    """Parquet files like LAION's: one row in twenty names a URL of few, half meet both conditions."""
    folder.mkdir()
    random = np.random.default_rng(1)
    words = pa.array(_WORDS)
    for number, start in enumerate(range(0, rows, _FILE_ROWS)):
        count = min(_FILE_ROWS, rows - start)
        picture = random.integers(0, 1 << 40, count)
        often = random.random(count) < 0.05
        picture[often] = random.integers(0, 50_000, int(often.sum()))
        host, picture_text = pa.array(picture % 99_991).cast(pa.string()), pa.array(picture).cast(pa.string())
        caption = [words.take(pa.array(random.integers(0, len(words), count))) for _ in range(8)]
        table = pa.table(
            {
                "URL": pc.binary_join_element_wise(
                    "https://cdn", host, ".example.com/images/", picture_text, ".jpg", ""
                ),
                "TEXT": pc.binary_join_element_wise(*caption, " "),
                "similarity": pa.array(random.random(count).astype(np.float32) * 0.4 + 0.1),
                "NSFW": pc.if_else(pa.array(random.random(count) < 0.9), "UNLIKELY", "UNSURE"),
                "WIDTH": random.integers(100, 2000, count).astype(np.int32),
                "HEIGHT": random.integers(100, 2000, count).astype(np.int32),
            }
        )
        pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=500_000)


if __name__ == "__main__":
    sys.exit(main())
