"""`kill -9` of one process of several: a worker of a build on Ray, one of a run's processes under torchrun."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from teacher_cache.verify import verify_cache

pytestmark = pytest.mark.long


def test_a_build_whose_worker_dies_goes_on_to_its_end(
    make_dataset: Any, save_teacher: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Both of its workers do, one after the other, each at some shard."""
    start, wait_until, alive, snapshot = map(request.getfixturevalue, ("start", "wait_until", "alive", "snapshot"))
    dataset = make_dataset(tmp_path / "set", [40] * 12)
    words = ["cache", "build", str(tmp_path / "set"), "--teacher", save_teacher(tmp_path / "teacher")]
    words += ["--views", "4", "--batch-size", "40"]
    assert main([*words, "--out", str(tmp_path / "whole"), "--in-process"]) == 0
    out = tmp_path / "cache"
    run = start(*words, "--out", out, "--workers", "2")

    def made() -> int:
        return len(list(out.glob("*/*/_records/0*.json")))

    killed: set[int] = set()
    for number in (1, 4):
        wait_until(lambda number=number: made() >= number or run.process.poll() is not None)
        workers = {process for process, line in run.look().items() if line.startswith(b"ray::RayWorker")} - killed
        victim = min(workers)
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    below = set(run.look())
    status, said, err = run.finish()
    assert status == 0, err
    assert "24 files made, 0 were there already" in said
    assert not alive(below)
    assert snapshot(out) == snapshot(tmp_path / "whole")
    assert verify_cache(str(dataset.folder), str(out), rows=4).problems == ()


def test_a_run_whose_process_dies_ends_and_goes_on_with_the_same_command(
    make_dataset: Any, save_student: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    start, wait_until, alive = map(request.getfixturevalue, ("start", "wait_until", "alive"))
    make_dataset(tmp_path / "set", [32, 32])
    words = ["distill", tmp_path / "set", "--student", save_student(tmp_path / "student.json")]
    options = "--steps 60 --batch-size 8 --lr 1e-3 --warmup 2 --checkpoint-every 5 --log-every 1"
    words += options.split()
    for out in (tmp_path / "whole", tmp_path / "run"):
        run = start(*words, "--out", out, processes=2)
        if out.name == "run":
            for rank in (1, 0):
                checkpoints = len(list(out.glob("checkpoints/0*")))
                wait_until(lambda out=out, before=checkpoints: len(list(out.glob("checkpoints/0*"))) > min(before, 1))
                ranks = sorted(process for process, line in run.look().items() if b"clipstill" in line)
                os.kill(ranks[rank], signal.SIGKILL)
                status, _, err = run.finish()
                assert status != 0, err
                assert not alive(ranks)
                run = start(*words, "--out", out, processes=2)
        status, _, err = run.finish()
        assert status == 0, err
    models = [tmp_path / name / "model" / "open_clip_model.safetensors" for name in ("whole", "run")]
    assert models[0].read_bytes() == models[1].read_bytes()
