"""Many mutations in a child process, so that a crash or a hang is a finding and no end of the tests.

    python -m tests.fuzz.batch MODULE,MODULE... FOLDER FIRST COUNT

runs `MODULE.case(seed, folder)` of each for the seeds from FIRST on, each in an empty folder. A case returns "read", or
the refusal that its reader ended with; whatever it raises is a finding.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import resource
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

_HANGS = 120
"""Seconds after which a case is a hang; it takes hundredths of one, and the machine may be busy."""
_SLOW = 10.0
"""Seconds of CPU after which a case is one too."""
_MEMORY = 1 << 30
"""Bytes that a case may add to what is reserved."""


def run(modules: Sequence[str], folder: Path, first: int, count: int) -> dict[str, Counter[str]]:
    """For each module how many cases were "read" and "refused".

    Fails with the seed and its traceback where one ended otherwise.
    """
    command = [sys.executable, "-m", "tests.fuzz.batch", ",".join(modules), str(folder), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    ends = {module: Counter[str]() for module in modules}
    begun, findings = None, []
    for line in done.stdout.splitlines():
        told = json.loads(line)
        begun = told.get("seed", begun)
        if "end" in told:
            begun = None
            ends[told["module"]][told["end"]] += 1
        if "finding" in told:
            findings.append(told["finding"])
    if begun is not None or done.returncode:
        findings.append(f"seed {begun}: the process ended with {done.returncode}\n{done.stderr[-4000:]}")
    assert not findings, f"{len(findings)} findings; the first:\n{findings[0]}"
    assert all(found.total() == count for found in ends.values())
    return ends


def main(modules: str, folder: str, first: str, count: str) -> None:
    warnings.simplefilter("error")
    for module in modules.split(","):
        target = importlib.import_module(f"tests.fuzz.{module}")
        for seed in range(int(first), int(first) + int(count)):
            place = Path(folder) / module / f"{seed}"
            place.mkdir(parents=True)
            _say(seed=f"{seed} of {module}")
            faulthandler.dump_traceback_later(_HANGS, exit=True)
            _say(module=module, end=_end(target, seed, place))
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(place)


def _end(target: ModuleType, seed: int, place: Path) -> str:
    _limit_memory()
    began = time.process_time()
    try:
        end = target.case(seed, place)
        if not (seconds := time.process_time() - began) < _SLOW:
            raise RuntimeError(f"{seconds:.0f} seconds of CPU")
    except BaseException:  # noqa: BLE001 - each is a finding
        _say(finding=f"seed {seed} of {target.__name__}\n{traceback.format_exc()[-4000:]}")
        return "finding"
    return "read" if end == "read" else "refused"


def _limit_memory() -> None:
    """Whoever reserves what a forged size says is refused it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
