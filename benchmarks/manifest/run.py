"""Open the dataset in a folder: `python -m benchmarks.manifest.run FOLDER`; says what it took as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from shards import Dataset


def main(folder: str) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    dataset = Dataset.open(folder)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = {"shards": len(dataset.shards), "samples": len(dataset), "content": dataset.content}
    print(json.dumps({**found, "seconds": seconds, "cpu": cpu, "memory": _peak()}))  # noqa: T201


def _peak() -> int:
    """The most bytes of memory that this program had at once. `ru_maxrss` would begin with that of its parent."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])
