"""Map next to nothing over many shards on Ray: `python -m benchmarks.scale.driver FOLDER SHARDS WORKERS`.

Says as JSON what the driver took: what a worker does is one small record, so that what is left is the driver's own.
With WORKERS 0 there is no Ray: what is measured is then a run that finds everything done.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.scale.process import memory
from shards import Folder, InProcess, ShardRecord, Spec, run_shards
from shards.executor import Executor
from shards.ray_executor import RayExecutor
from shards.record import RECORDS

FINGERPRINT = "0123456789abcdef"


class Worker:
    def run(self, spec: Spec) -> ShardRecord:
        # Not by a Publication, which looks for rivals in a listing: of a local folder that takes the worker, not the
        # driver, 0.3 µs for each record that is there.
        record = ShardRecord(spec.shard, spec.fingerprint, "", 10_000, (), {"rows": 10_000})
        spec.folder.child(RECORDS).publish(str(record.name), record.to_json().encode())
        return record

    def close(self) -> None: ...


@dataclass
class Task:
    folder: Folder
    shards: int
    name: str = "nothing"
    overlap: int = 8

    def specs(self) -> Iterator[Spec]:
        return (Spec(shard, self.folder, FINGERPRINT) for shard in range(self.shards))

    def open(self) -> Worker:
        return Worker()


def main(folder: str, shards: str, workers: str) -> None:
    task = Task(Folder(folder), int(shards))
    executor: Executor = RayExecutor(int(workers)) if int(workers) else InProcess()
    began, cpu = time.perf_counter(), time.process_time()
    summary = run_shards(task, executor)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = {"finished": summary.finished, "skipped": summary.skipped, "seconds": seconds, "cpu": cpu}
    print(json.dumps({**found, "memory": memory()["VmHWM"]}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
