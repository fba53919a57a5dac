"""`clipstill` and `python -m clipstill`, which is how `torchrun` starts it in each process."""

import os
import sys


def run() -> None:
    """The console script: an interrupt while modules are still being loaded is one line too."""
    try:
        from clipstill.main import run as begin  # noqa: PLC0415

        begin()
    except KeyboardInterrupt:
        print("clipstill: interrupted. Nothing was begun", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(130)


if __name__ == "__main__":
    run()
