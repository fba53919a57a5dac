"""Measure in a process of its own, on one core and one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def alone(module: str, *arguments: object) -> Any:
    """What `python -m benchmarks.cache.MODULE ARGUMENTS` prints as JSON on its last line."""
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-m", f"benchmarks.cache.{module}", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return json.loads(done.stdout.splitlines()[-1])


def answer(value: Any) -> None:
    """For the process that was started: hand back what was measured."""
    print(json.dumps(value), flush=True)  # noqa: T201
