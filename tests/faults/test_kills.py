"""`clipstill ingest` on Ray, killed fifty times at drawn moments: the driver, a worker, everything."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import InProcess, verify_dataset

ROWS, SHARD, KILLS = 400, 20, 50
SEED = 20

pytestmark = pytest.mark.long


def command(listing: Path, out: Path) -> list[str | Path]:
    options = f"--format cc3m --name set --shard-size {SHARD} --image-size 16 --connections 2 --allow-address 127.0.0.1"
    return ["ingest", listing, "--out", out, *options.split(), "--workers", "2"]


def test_fifty_kills_leave_the_bytes_of_a_run_never_disturbed(
    pictures: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    start, wait_until, alive, snapshot = map(request.getfixturevalue, ("start", "wait_until", "alive", "snapshot"))
    listing = pictures.write_list(tmp_path / "list.tsv", ROWS)
    source = SourceSettings(paths=(str(listing),), format="cc3m")
    settings = IngestSettings(
        source=source,
        out=str(tmp_path / "undisturbed"),
        name="set",
        shard_size=SHARD,
        image=ImageSettings(size=16),
        network=NetworkSettings(allow_addresses=("127.0.0.1",)),
    )
    ingest(settings, InProcess())
    expected = snapshot(tmp_path / "undisturbed")
    draw = random.Random(SEED)
    killed: dict[str, int] = dict.fromkeys(("driver", "worker", "everything"), 0)
    everyone: set[int] = set()
    out = tmp_path / "out-0"

    def disturb(run: Any) -> bool:
        """Kill what is drawn, when it is drawn, until the driver is dead or done; whether it reached its end."""
        while True:
            answers = pictures.answers + draw.choice((0, 1, 7, draw.randrange(ROWS)))
            wait_until(partial(_is_time, run, pictures, answers))
            everyone.update(run.look())
            if run.process.poll() is not None:
                status, _, err = run.finish()
                assert status == 0, err
                return True
            what = draw.choice(tuple(killed))
            if what == "worker":
                wait_until(lambda: _workers(run) or run.process.poll() is not None)
                if workers := _workers(run):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    killed["worker"] += 1
                continue
            if what == "driver":
                run.kill()
            else:
                what = "everything"
                os.killpg(run.process.pid, signal.SIGKILL)
            killed[what] += 1
            run.abandon()
            return False

    while sum(killed.values()) < KILLS:
        run = start(*command(listing, out))
        if disturb(run):
            # A worker's death does not keep a run from its end: look at it and begin anew.
            assert snapshot(out) == expected
            out = tmp_path / f"out-{sum(killed.values())}"
    assert start(*command(listing, out)).finish()[0] == 0
    assert snapshot(out) == expected
    assert verify_dataset(str(out)).problems == ()
    assert min(killed.values()) >= 10, killed
    # Ray's own idle agents stay for up to a minute when their driver is gone.
    deadline = time.monotonic() + 600
    while alive(everyone) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not alive(everyone)


def _workers(run: Any) -> list[int]:
    return [process for process, line in run.look().items() if line.startswith(b"ray::RayWorker")]


def _is_time(run: Any, pictures: Any, answers: int) -> bool:
    return pictures.answers >= answers or run.process.poll() is not None
