"""What the processes of `test_in_run.py` run: each evaluates its part of every case, and writes what it makes of all.

    python -m tests.distill.in_run_program PLAN.json

The file holds the number of processes, a model's folder, a folder for the answers, and the settings of each case.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from clip_models import load_model
from distill.settings import EvaluationSettings
from distill.training.in_run import InRun
from distill.training.ranks import Ranks


def answers(plan: dict[str, Any], ranks: Ranks) -> list[Any]:
    """Of each case the figures, or what was refused of its only set."""
    loaded = load_model(plan["model"])
    found: list[Any] = []
    for case in plan["cases"]:
        settings = EvaluationSettings(**{**case, "on": tuple(case["on"])})
        judge = InRun(settings, loaded.config, torch.device("cpu"), "fp32", ranks)
        figures = judge(loaded.model)
        found.append(figures or judge.refused)
    return found


def work(plan: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.join()
    (Path(plan["out"]) / f"{ranks.rank}.json").write_text(json.dumps(answers(plan, ranks)))
    ranks.leave()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(given["size"]):
        child = os.fork()
        if child == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(given["size"]), "LOCAL_WORLD_SIZE": str(given["size"])}
            status = 1
            try:
                work(given)
                status = 0
            except BaseException:  # noqa: BLE001 - whatever it is, this process ends here
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(any(statuses))
