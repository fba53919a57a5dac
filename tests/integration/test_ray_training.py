"""Training on a real Ray, in two worker processes, is training: the same loop, folder and errors."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from distill.run_folder import read_log
from distill.settings import OptimiserSettings, RunSettings
from distill.training.interrupt import Interrupted
from distill.training.launch import launch
from shards import Dataset, InProcess, UserError
from shards.ray_session import ray_session
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache

# Ray's own.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
) -> RunSettings:
    root = tmp_path_factory.mktemp("ray training")
    shards = str(make_dataset(root / "data", (12, 9)).folder)
    teacher = TeacherSpec(save_teacher(root / "teacher"), "teach")
    build_cache(BuildSettings(shards=shards, cache=str(root / "cache"), teachers=(teacher,), batch_size=8), InProcess())
    return RunSettings(
        shards=shards,
        cache=str(root / "cache"),
        out=str(root / "run"),
        student=save_student(root / "student.json"),
        losses={"affinity": 1.0, "fd": 10.0},
        steps=6,
        batch_size=4,
        optimiser=OptimiserSettings(lr=1e-3, warmup=2),
        log_every=1,
        checkpoint_every=2,
    )


def moved(settings: RunSettings, out: Path, **changes: object) -> RunSettings:
    return replace(settings, out=str(out), **changes)


# Several processes that each load torch, on two cores that may be busy.
@pytest.mark.timeout(1800)
def test_two_workers_of_ray_train_as_one_process_does(settings: RunSettings, tmp_path: Path) -> None:
    with ray_session(cpus=2):
        there = launch(moved(settings, tmp_path / "ray"), "ray", 2)
        with pytest.raises(UserError, match="3 processes were asked for, the cluster has 2 cores"):
            launch(settings, "ray", 3)
    here = launch(moved(settings, tmp_path / "here"))
    assert (there.steps, there.model) == (6, str(tmp_path / "ray" / "model"))
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("ray", "here")]
    assert [line["step"] for line in logs[0]] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
    assert (
        load_file(Path(there.model) / "open_clip_model.safetensors").keys()
        == load_file(Path(here.model) / "open_clip_model.safetensors").keys()
    )


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_workers_with_a_checkpoint(settings: RunSettings, tmp_path: Path, number: int) -> None:
    """Both at one step, from which the run goes on to the same bytes; no checkpoint was due."""
    long = moved(settings, tmp_path / "run", steps=4000, checkpoint_every=10_000, log_every=1)
    log = tmp_path / "run" / "log.jsonl"

    def ask() -> None:
        while not (log.exists() and len(log.read_text().splitlines()) > 3):
            ended.wait(0.05)
        os.kill(os.getpid(), number)

    ended = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    with ray_session(cpus=2), pytest.raises(Interrupted, match=r"after step \d+ of 4000, with a checkpoint") as caught:
        launch(long, "ray", 2)
    ended.set()
    assert caught.value.signal == number
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert f"after step {int(checkpoint.name)} of" in str(caught.value)
    assert not (tmp_path / "run" / ".asked").exists()
    assert not (tmp_path / "run" / "done.json").exists()


@pytest.mark.long
def test_what_a_worker_refuses_is_refused_here(settings: RunSettings, tmp_path: Path) -> None:
    launch(moved(settings, tmp_path / "run"))
    with (
        ray_session(cpus=2),
        pytest.raises(UserError, match=r"this folder holds another run: settings\.seed was 0, now 1"),
    ):
        launch(moved(settings, tmp_path / "run", seed=1), "ray", 1)


@pytest.mark.long
def test_a_killed_worker_costs_the_steps_since_the_checkpoint_and_nothing_else(
    settings: RunSettings, tmp_path: Path
) -> None:
    steps = 60
    with ray_session(cpus=2):
        launch(moved(settings, tmp_path / "whole", steps=steps), "ray", 2)
        out = tmp_path / "killed"
        killed: list[int] = []

        def kill() -> None:
            while not (out / "checkpoints" / "00000004").exists():
                ended.wait(0.01)
            killed.append(_a_worker())
            os.kill(killed[0], signal.SIGKILL)

        ended = threading.Event()
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        launch(moved(settings, out, steps=steps), "ray", 2)
        killer.join()
    assert "resumed" in (out / "events.jsonl").read_text()
    weights = [(tmp_path / name / "model" / "open_clip_model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.long
def test_a_machine_that_is_lost_is_waited_for_and_training_goes_on(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    steps = 60
    with ray_session(cpus=2):
        launch(moved(settings, tmp_path / "whole", steps=steps), "ray", 2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        _, second = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
        out = tmp_path / "lost"
        with ThreadPoolExecutor(1) as pool:
            # Machines can only be added by the main thread.
            run = pool.submit(launch, moved(settings, out, steps=steps), "ray", 2, cluster.address)
            deadline = time.monotonic() + 600
            while not (out / "checkpoints" / "00000004").exists():
                assert time.monotonic() < deadline, "no checkpoint"
                assert not run.done(), run
                time.sleep(0.01)
            raylet = second.all_processes["raylet"][0].process.pid
            below = [
                int(path.name)
                for path in Path("/proc").glob("[0-9]*")
                if (path / "stat").exists() and _parent(path) == raylet
            ]
            for process in (raylet, *below):
                os.kill(process, signal.SIGKILL)
            cluster.add_node(num_cpus=1)
            run.result()
    finally:
        cluster.shutdown()
    assert "resumed" in (out / "events.jsonl").read_text()
    weights = [(tmp_path / name / "model" / "open_clip_model.safetensors").read_bytes() for name in ("whole", "lost")]
    assert weights[0] == weights[1]


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _a_worker() -> int:
    """The process number of one of Ray Train's workers on this machine."""
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                title = (path / "cmdline").read_text()
            except OSError:
                continue
            if re.match(r"ray::\S*TrainWorker", title):
                return int(path.name)
    raise AssertionError("no worker is running")
