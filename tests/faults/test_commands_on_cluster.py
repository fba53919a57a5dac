"""Commands with `--ray-address` on a cluster of several raylets: the results of one process, or one line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main

pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")

COMMANDS = ("verify", "filter", "cache", "evaluate")


@pytest.fixture
def commands(make_dataset: Any, save_teacher: Any, tmp_path: Path) -> Callable[[str, Path], list[str]]:
    """`commands(name, out)`: the words of a command, but for where it runs."""
    shards = str(make_dataset(tmp_path / "set", [6] * 6).folder)
    teacher = save_teacher(tmp_path / "teacher")

    def words(name: str, out: Path) -> list[str]:
        return {
            "verify": ["shards", "verify", shards],
            "filter": [
                "shards",
                "filter",
                shards,
                "--where",
                "short_side >= 40",
                "--unique",
                "near",
                "--out",
                str(out),
            ],
            "cache": ["cache", "build", shards, "--teacher", teacher, "--out", str(out), "--views", "2"],
            "evaluate": ["evaluate", teacher, "--on", shards, "--out", str(out)],
        }[name]

    return words


def left(snapshot: Any, out: Path) -> dict[str, Any]:
    """Its files, but for how fast an evaluation went, and for the batch size at which a teacher was fastest."""
    files: dict[str, Any] = snapshot(out) if out.exists() else {}
    timed = [name for name in files if name.endswith(("results.json", "layer.json"))]
    return files | {name: without_times(json.loads(files[name])) for name in timed}


def without_times(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: without_times(part) for name, part in value.items() if name not in {"speed", "batch_size"}}


def expected(words: Callable[[str, Path], list[str]], name: str, tmp_path: Path, snapshot: Any) -> dict[str, Any]:
    """What the command leaves that runs in this process."""
    here = ["--in-process"] if name != "evaluate" else []
    assert main([*words(name, tmp_path / "here" / "out"), *here]) == 0
    return left(snapshot, tmp_path / "here" / "out")


@pytest.mark.parametrize("name", [*COMMANDS, "distill"])
@pytest.mark.parametrize("address", ["127.0.0.1:1", "head.invalid:6379"])
def test_an_address_where_no_cluster_is_costs_one_line(
    commands: Any, name: str, address: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    save_student, capsys = request.getfixturevalue("save_student"), request.getfixturevalue("capsys")
    if name == "distill":
        words = ["distill", str(tmp_path / "set"), "--student", save_student(tmp_path / "s.json"), "--launcher", "ray"]
        words += ["--steps", "1", "--batch-size", "4", "--out", str(tmp_path / "out")]
    else:
        words = commands(name, tmp_path / "out")
    assert main([*words, "--ray-address", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"clipstill: error: no Ray cluster answers at '{address}' (")
    assert not (tmp_path / "out").exists()


class Machines:
    """Two of one core, and a command on them."""

    def __init__(self, cluster: Any, start: Any, wait_until: Any) -> None:
        self.cluster = cluster
        self.nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        self._start, self._wait_until = start, wait_until

    def run(self, words: list[str]) -> Any:
        return self._start(*words, "--ray-address", self.cluster.address)

    def held(self, run: Any) -> tuple[Any, int]:
        """A machine of those whose worker has begun, and that worker, which is stopped: its work has not ended."""
        found: list[tuple[Any, int]] = []

        def look() -> bool:
            assert run.process.poll() is None, run.finish()
            found.extend((node, worker) for node in self.nodes for worker in workers_of(node))
            return bool(found)

        self._wait_until(look)
        os.kill(found[0][1], signal.SIGSTOP)
        return found[0]


@pytest.fixture
def machines(cluster: Any, start: Any, wait_until: Any) -> Machines:
    return Machines(cluster, start, wait_until)


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def workers_of(node: Any) -> list[int]:
    """The processes below a raylet that do a command's work: an actor for shards, or one call."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            title = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == raylet(node) and title.startswith((b"ray::RayWorker", b"ray::RayCaller")):
            found.append(int(path.name))
    return found


def end(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def told(err: str) -> list[str]:
    """What was said beside progress."""
    return [line for line in err.splitlines() if not re.match(r"[a-z ]+.*: +\d+/\d+ ", line)]


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_the_results_are_those_of_one_process(
    commands: Any, machines: Machines, name: str, tmp_path: Path, snapshot: Any
) -> None:
    status, _, err = machines.run(commands(name, tmp_path / "there" / "out")).finish()
    assert status == 0, err
    assert left(snapshot, tmp_path / "there" / "out") == expected(commands, name, tmp_path, snapshot)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.long
# Ray's own: it leaves the logs of its client server open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("cluster", [{"ray_client_server_port": free_port()}], indirect=True, ids=["client"])
def test_a_cluster_is_joined_from_outside_too(
    commands: Any, machines: Machines, tmp_path: Path, snapshot: Any, start: Any
) -> None:
    port = machines.cluster.head_node._ray_params.ray_client_server_port
    words = commands("filter", tmp_path / "there" / "out")
    for _ in range(4):
        status, _, err = start(*words, "--ray-address", f"ray://127.0.0.1:{port}").finish()
        # Ray gives a client's server half a minute to begin, which on a busy machine is little.
        if "Starting Ray client server failed" not in err:
            break
    assert status == 0, err
    assert left(snapshot, tmp_path / "there" / "out") == expected(commands, "filter", tmp_path, snapshot)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("how", ["machine", "raylet"])
def test_a_machine_that_is_lost_costs_no_result(
    commands: Any, machines: Machines, name: str, how: str, request: pytest.FixtureRequest
) -> None:
    tmp_path, snapshot = request.getfixturevalue("tmp_path"), request.getfixturevalue("snapshot")
    run = machines.run(commands(name, tmp_path / "there" / "out"))
    node, worker = machines.held(run)
    os.kill(raylet(node), signal.SIGKILL)
    if how == "machine":
        os.kill(worker, signal.SIGKILL)
    try:
        status, _, err = run.finish()
    finally:
        end(worker)
    assert status == 0, err
    assert left(snapshot, tmp_path / "there" / "out") == expected(commands, name, tmp_path, snapshot)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_head_that_dies_costs_one_line(commands: Any, machines: Machines, name: str, tmp_path: Path) -> None:
    run = machines.run(commands(name, tmp_path / "there" / "out"))
    _, worker = machines.held(run)
    os.kill(int(machines.cluster.head_node.all_processes["gcs_server"][0].process.pid), signal.SIGKILL)
    try:
        status, _, err = run.finish()
    finally:
        end(worker)
    assert status == 2, err
    assert re.match(r"clipstill: error: the Ray cluster at '.*' answers no more. What was pub", told(err)[-1]), err
