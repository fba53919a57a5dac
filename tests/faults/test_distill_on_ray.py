"""`clipstill distill --launcher ray` while Ray's processes, machines and heads die: the bytes of a run in one piece."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = 60

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, make_dataset: Any, save_student: Any) -> list[str]:
    """A run but for `--out`: by two processes, a checkpoint every four steps."""
    root = tmp_path_factory.mktemp("distill on ray")
    make_dataset(root / "set", (12, 9))
    options = f"--steps {STEPS} --batch-size 4 --lr 1e-3 --warmup 2 --checkpoint-every 4 --log-every 1"
    run = ["distill", str(root / "set"), "--student", save_student(root / "student.json"), *options.split()]
    return [*run, "--launcher", "ray", "--processes", "2"]


@pytest.fixture
def whole(words: list[str], start: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nothing disturbs."""
    out = tmp_path_factory.getbasetemp() / "whole"
    if not (out / "done.json").exists():
        status, _, err = start(*words, "--out", out).finish()
        assert status == 0, err
    return weights(out)


def weights(out: Path) -> bytes:
    return (out / "model" / "open_clip_model.safetensors").read_bytes()


def under_way(out: Path, run: Any) -> Callable[[], bool]:
    """Whether a checkpoint is there; fails if the run has ended without."""

    def look() -> bool:
        assert run.process.poll() is None, run.finish()
        return (out / "checkpoints" / "00000004").exists()

    return look


def lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if not line.startswith("distill ")]


@pytest.mark.parametrize("name", ["raylet/raylet", "gcs_server", "TrainController", "TrainWorker"])
def test_whatever_of_ray_dies_the_run_goes_on_to_its_end(
    words: list[str], whole: bytes, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    start, wait_until, alive = map(request.getfixturevalue, ("start", "wait_until", "alive"))
    out = tmp_path / "run"
    run = start(*words, "--out", out)
    wait_until(under_way(out, run))
    below = run.look()
    os.kill(next(process for process, line in below.items() if name.encode() in line), signal.SIGKILL)
    status, _, err = run.finish()
    assert status == 0, err
    (line,) = lines(err)
    assert re.fullmatch(r"(a worker was lost|Ray has died here|Ray Train was lost) \(.*\) after step \d+; .*", line)
    assert '"resumed' in (out / "events.jsonl").read_text()
    assert weights(out) == whole
    assert not alive(below)


def test_a_machine_whose_raylet_alone_dies_is_waited_for(
    words: list[str], whole: bytes, cluster: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of two of unlike size: an even share of all cores is more than one of them has, so both processes are on the
    other, which dies.
    """
    start, wait_until = map(request.getfixturevalue, ("start", "wait_until"))
    large, _ = cluster.add_node(num_cpus=3), cluster.add_node(num_cpus=1)
    out = tmp_path / "run"
    run = start(*words, "--out", out, "--ray-address", cluster.address)
    wait_until(under_way(out, run))
    cluster.remove_node(large, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    status, _, err = run.finish()
    assert status == 0, err
    assert lines(err)[0].startswith("a worker was lost (")
    assert weights(out) == whole


def test_machines_that_are_still_to_come_are_waited_for(
    words: list[str], whole: bytes, cluster: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What an autoscaler goes by is there meanwhile."""
    start = request.getfixturevalue("start")
    out = tmp_path / "run"
    run = start(*words, "--out", out, "--ray-address", cluster.address)
    told = run.read_until("waiting for a machine to join")
    assert told[-1].startswith("2 processes were asked for, the cluster has 0 cores: waiting"), told
    cluster.add_node(num_cpus=2)
    status, _, err = run.finish()
    assert status == 0, err
    assert weights(out) == whole


def test_a_cluster_whose_head_dies_is_one_clear_error(
    words: list[str], whole: bytes, cluster: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    start, wait_until = map(request.getfixturevalue, ("start", "wait_until"))
    cluster.add_node(num_cpus=2)
    out = tmp_path / "run"
    run = start(*words, "--out", out, "--ray-address", cluster.address)
    wait_until(under_way(out, run))
    os.kill(int(cluster.head_node.all_processes["gcs_server"][0].process.pid), signal.SIGKILL)
    status, _, err = run.finish()
    assert status == 2, err
    (line,) = lines(err)
    assert re.match(r"clipstill: error: the Ray cluster at '.*' answers no more. What was published stays", line)
    # The same command goes on without it.
    status, _, err = start(*words, "--out", out).finish()
    assert status == 0, err
    assert weights(out) == whole
