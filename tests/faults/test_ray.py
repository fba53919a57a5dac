"""`clipstill ingest` on Ray while Ray's own processes die, and machines leave and join a cluster."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import InProcess

ROWS, SHARD = 24, 4


def wait_for_process(run: Any, name: str, wait_until: Any) -> int:
    wait_until(lambda: [process for process, line in run.look().items() if name.encode() in line])
    return next(process for process, line in run.look().items() if name.encode() in line)


@pytest.mark.parametrize(
    "name",
    ["raylet/raylet"]
    + [
        pytest.param(name, marks=pytest.mark.long)
        for name in ("gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::RayWorker")
    ],
)
def test_whatever_of_ray_dies_the_run_goes_on_to_its_end(
    pictures: Any, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    start, wait_until, alive, snapshot = map(request.getfixturevalue, ("start", "wait_until", "alive", "snapshot"))
    listing = pictures.write_list(tmp_path / "list.tsv", ROWS)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    request.getfixturevalue("monkeypatch").setenv("TMPDIR", str(scratch))
    options = f"--format cc3m --name set --shard-size {SHARD} --image-size 16 --connections {ROWS} --deadline 60"
    more = ("--allow-address", "127.0.0.1", "--workers", "2")
    pictures.held_from = ROWS // 2
    run = start("ingest", listing, "--out", tmp_path / "out", *options.split(), *more)
    wait_until(lambda: pictures.waiting)
    below = set(run.look())
    os.kill(wait_for_process(run, name, wait_until), signal.SIGKILL)
    pictures.release.set()
    status, said, err = run.finish()
    assert status == 0, err
    assert said.splitlines()[-1] == f"{ROWS // SHARD} shards made, 0 were there already, in {tmp_path / 'out'}"
    # What Ray itself would say of it is long.
    assert all(line.startswith(("Ray has died here", "out/", "ingest: ")) for line in err.splitlines()), err
    assert not alive(below)
    assert list(scratch.iterdir()) == []
    source = SourceSettings(paths=(str(listing),), format="cc3m")
    network = NetworkSettings(connections=ROWS, deadline=60, allow_addresses=("127.0.0.1",))
    undisturbed = IngestSettings(
        source=source,
        out=str(tmp_path / "undisturbed"),
        name="set",
        shard_size=SHARD,
        image=ImageSettings(size=16),
        network=network,
    )
    ingest(undisturbed, InProcess())
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "undisturbed")
