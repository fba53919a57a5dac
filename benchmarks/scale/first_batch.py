"""Open a run and take its first batch: `python -m benchmarks.scale.first_batch JSON`; says what it took as JSON.

JSON is settings of a run. The student is as small as can be: what is measured is all that is not the student.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.scale.process import memory
from distill.settings import RunSettings
from distill.training.run import Run


def main(given: str) -> None:
    settings: dict[str, Any] = json.loads(given)
    settings |= {name: tuple(settings[name]) for name in ("shards", "cache", "weight") if name in settings}
    before = memory()
    began, cpu = time.perf_counter(), time.process_time()
    run = Run(RunSettings(**settings))
    opened = time.perf_counter() - began
    batch = run.loader.batch(0)
    assert len(batch.keys) == settings["batch_size"]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    now = memory()
    found = {
        "samples": run.order.samples,
        "opened": opened,
        "seconds": seconds,
        "cpu": cpu,
        "memory": now["VmHWM"],
        "anonymous": now["RssAnon"],
        "before": before["VmHWM"],
        "bytes_a_sample": (now["RssAnon"] - before["RssAnon"]) / len(run.dataset),
    }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
