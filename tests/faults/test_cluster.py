"""Work on a cluster of several machines, of which some die, leave or join: raylets of their own, each with a core."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest import ImageSettings, IngestSettings, NetworkSettings, SourceSettings, ingest
from shards import InProcess

ROWS, SHARD = 24, 3

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")


class Site:
    """A list of pictures of which every other two shards are held back, and a run over it on a cluster.

    So of two workers each is at some of them, whichever began first.
    """

    def __init__(self, pictures: Any, start: Any, wait_until: Any, folder: Path) -> None:
        self.pictures, self.wait_until, self.folder = pictures, wait_until, folder
        self._start = start
        self.listing = pictures.write_list(folder / "list.tsv", ROWS)
        pictures.held_from, pictures.spared = 2 * SHARD, range(4 * SHARD, 6 * SHARD)

    def run(self, address: str, workers: int) -> Any:
        options = f"--format cc3m --name set --shard-size {SHARD} --image-size 16 --connections {ROWS} --deadline 300"
        where = f"--allow-address 127.0.0.1 --workers {workers} --per-host {ROWS} --ray-address {address}"
        return self._start("ingest", self.listing, "--out", self.folder / "out", *f"{options} {where}".split())

    def in_the_middle(self) -> None:
        """Wait until all that is not held back is made, and the rest is under way."""
        made = ROWS // 2 // SHARD
        self.wait_until(
            lambda: self.pictures.waiting >= ROWS // 2 and len(list(self.folder.glob("out/_records/0*"))) >= made
        )

    def undisturbed(self) -> Path:
        """The same in this process, once nothing is held back."""
        out = self.folder / "undisturbed"
        settings = IngestSettings(
            source=SourceSettings(paths=(str(self.listing),), format="cc3m"),
            out=str(out),
            name="set",
            shard_size=SHARD,
            image=ImageSettings(size=16),
            network=NetworkSettings(connections=ROWS, deadline=300, allow_addresses=("127.0.0.1",)),
        )
        ingest(settings, InProcess())
        return out


@pytest.fixture
def site(pictures: Any, start: Any, wait_until: Any, tmp_path: Path) -> Site:
    return Site(pictures, start, wait_until, tmp_path)


def workers(of: Any) -> list[int]:
    """The processes that make shards below the raylet of a node."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if read(path).startswith(b"ray::RayWorker") and parent(path) == raylet(of)
    ]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def parent(path: Path) -> int:
    stat = read(path.with_name("stat")).decode()
    return int(stat.rpartition(")")[2].split()[1]) if stat else 0


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def drain(address: str, node: Any) -> None:
    """What a cloud's notice makes Ray do."""
    script = Path(sys.executable).with_name("ray")
    reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice")
    command = [script, "drain-node", "--address", address, "--node-id", node.node_id, *reason]
    done = subprocess.run(
        [*command, "--deadline-remaining-seconds", "120"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def told(err: str) -> list[str]:
    return [line for line in err.splitlines() if not line.startswith("ingest: ")]


@pytest.mark.parametrize(
    "how",
    [
        "killed",
        pytest.param("raylet killed", marks=pytest.mark.long),
        pytest.param("raylet ended", marks=pytest.mark.long),
        pytest.param("worker ended", marks=pytest.mark.long),
        pytest.param("notice", marks=pytest.mark.long),
    ],
)
def test_a_machine_less(
    cluster: Any, site: Site, how: str, alive: Any, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    first, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
    run = site.run(cluster.address, 2)
    site.in_the_middle()
    victims = workers(first)
    assert len(victims) == 1
    if how == "notice":
        drain(cluster.address, first)
    elif how == "worker ended":
        os.kill(victims[0], signal.SIGTERM)
    else:
        os.kill(raylet(first), signal.SIGTERM if how == "raylet ended" else signal.SIGKILL)
        if how == "killed":
            os.kill(victims[0], signal.SIGKILL)
    began = time.monotonic()
    assert run.process.stderr is not None
    heard = next(line for line in run.process.stderr if not line.startswith("ingest: "))
    seconds = time.monotonic() - began
    if how == "notice":
        site.wait_until(lambda: not alive(victims))
    site.pictures.release.set()
    status, said, err = run.finish()
    assert status == 0, err
    assert said.splitlines()[-1].startswith(f"{ROWS // SHARD} shards made")
    lines = [heard.strip(), *told(err)]
    reasons = {"notice": "its machine is to go", "worker ended": r"attempt 1 failed \(the worker process died"}
    reason = reasons.get(how, r"its (machine was lost|worker is heard of no more): handed to another")
    assert all(re.match(rf"out/0000[2367]: .*({reason})", line) for line in lines), err
    assert snapshot(site.folder / "out") == snapshot(site.undisturbed())
    # Of a machine that vanishes without a word Ray hears when it does not answer for a while.
    assert how == "raylet killed" or seconds < 60


@pytest.mark.long
def test_all_machines_gone_and_another_joins(
    cluster: Any, site: Site, alive: Any, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    run = site.run(cluster.address, 3)
    site.in_the_middle()
    victims = [process for node in nodes for process in workers(node)]
    assert len(victims) == 2
    for process in [*(raylet(node) for node in nodes), *victims]:
        os.kill(process, signal.SIGKILL)
    site.wait_until(lambda: not alive(victims))
    # One of many cores: the worker that never had room begins too.
    new = cluster.add_node(num_cpus=3)
    site.wait_until(lambda: len(workers(new)) == 3)
    site.pictures.release.set()
    status, _, err = run.finish()
    assert status == 0, err
    assert snapshot(site.folder / "out") == snapshot(site.undisturbed())


@pytest.mark.long
def test_a_cluster_whose_head_dies_is_one_clear_error(
    cluster: Any, site: Site, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    cluster.add_node(num_cpus=1)
    run = site.run(cluster.address, 1)
    site.in_the_middle()
    os.kill(int(cluster.head_node.all_processes["gcs_server"][0].process.pid), signal.SIGKILL)
    status, _, err = run.finish()
    assert status == 2, err
    (line,) = told(err)
    assert re.match(r"clipstill: error: the Ray cluster at '.*' answers no more. What was published stays", line)
    site.pictures.release.set()
    # The folder is nobody's: the same can go on elsewhere.
    again = site._start(
        *f"ingest {site.listing} --out {site.folder}/out --format cc3m --name set --shard-size {SHARD} --image-size 16 "
        "--allow-address 127.0.0.1 --in-process".split()
    )
    status, _, err = again.finish()
    assert status == 0, err
    assert snapshot(site.folder / "out") == snapshot(site.undisturbed())
