"""Processes side by side for work that is too small to share a core's threads among: one core each.

A step of a student this small spends its time waiting when several threads share it; two processes of one thread
train two students in little more than the time of one. They end with their parent, also when that is killed, so a
demo that is started again never meets a trainer of the one before.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import Any

from shards.progress import Meter


def run_side_by_side(label: str, jobs: Iterable[Callable[[], Any]], workers: int) -> None:
    """Run every job (picklable, without a result) on `workers` processes; the first exception stops the rest.

    After an exception the jobs under way are left to end with this process, which is about to.
    """
    pending = list(jobs)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        with Meter(label, len(pending), unit="runs") as meter:
            for future in as_completed([pool.submit(job) for job in pending]):
                future.result()
                meter.advance(1)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _begin() -> None:
    import torch  # noqa: PLC0415 - the parent has no use for it here

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # Ctrl-C reaches every process of a terminal; these are ended by their parent, which alone draws progress.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid:
        wait([parent.sentinel], timeout=0.5)
    os._exit(1)
