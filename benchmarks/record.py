"""What every benchmark writes: the machine, the versions, raw figures with their spread, and goals; and its end."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shards import Folder

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure and the bound it has to keep; exactly one bound is given."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        # Written so that no number at all (NaN) meets no goal.
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.at_most is not None and self.value <= self.at_most

    def line(self) -> str:
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{'met   ' if self.met else 'MISSED'}  {self.value:10.2f}  {bound:>10}  {self.name}"


def spread(runs: Sequence[float]) -> dict[str, Any]:
    """Raw figures in the order they were taken, with median, lowest and highest."""
    return {"runs": list(runs), "median": statistics.median(runs), "low": min(runs), "high": max(runs)}


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was just before (`load`, the last minute's)."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def versions(*packages: str) -> dict[str, str]:
    """Python's version and those of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)  # noqa: T201


def finish(
    folder: Path,
    name: str,
    body: dict[str, Any],
    goals: Sequence[Goal],
    *,
    write_page: Callable[[Path, dict[str, Any]], Path] | None,
    judged: bool,
) -> int:
    """End a benchmark: write `folder/NAME.json`, `body` with the goals, and its page, and say how it went.

    Returns the exit status: 1 if a goal was missed, unless the sizes were too small to be `judged`. `body["seconds"]`
    is how long it took. No page is written for `write_page` None.
    """
    result = _publish(folder, name, body, goals)
    if write_page is not None:
        say(str(write_page(folder, result)))
    say(f"{folder / name}.json in {body['seconds']:.0f} s")
    if not judged:
        say("too little to judge by")
        return 0
    for goal in goals:
        say(goal.line())
    return 0 if all(goal.met for goal in goals) else 1


def _publish(folder: Path, name: str, body: dict[str, Any], goals: Sequence[Goal]) -> dict[str, Any]:
    """Write the JSON file; returns what it holds."""
    plain = [{key: value for key, value in asdict(goal).items() if value is not None} for goal in goals]
    result = {"benchmark": name, "taken": datetime.now(UTC).isoformat(timespec="seconds"), **body, "goals": plain}
    folder.mkdir(parents=True, exist_ok=True)
    Folder(folder).publish(f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
    return result
