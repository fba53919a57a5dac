"""A run that is asked to end writes a checkpoint first, all its processes at one step; minutes make one due too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from distill.training.checkpoint import Checkpoints
from distill.training.interrupt import Interrupted
from distill.training.run import Run
from distill.training.train import train
from tests.distill.ranks_program import written


def steps_on_disk(out: Path) -> list[int]:
    return Checkpoints(out, 2).steps()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """Step (from 0) → the signals that this process then gets, in the middle of it."""
    due: dict[int, list[int]] = {}
    step = Run.step

    def interrupted(self: Run, batch: Any) -> Any:
        for number in due.pop(batch.step, ()):
            os.kill(os.getpid(), number)
        return step(self, batch)

    monkeypatch.setattr(Run, "step", interrupted)
    return due


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A run puts back what it found."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_a_checkpoint_from_which_it_goes_on_to_the_same_bytes(
    world: Any, tmp_path: Path, signals: dict[int, list[int]], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = world.settings(tmp_path / "run", checkpoint_every=100)
    whole = train(replace(settings, out=str(tmp_path / "whole"))).model
    signals[4] = [number]
    with pytest.raises(Interrupted, match=r"after step 5 of 8.*the same command goes on") as caught:
        train(settings)
    assert caught.value.signal == number
    assert capfd.readouterr().err.count("ending after this step, with a checkpoint") == 1
    out = tmp_path / "run"
    assert steps_on_disk(out) == [5]
    (event,) = (json.loads(line) for line in (out / "events.jsonl").read_text().splitlines())
    assert event["kind"] == "stopped"
    assert "after step 5 of 8" in event["text"]
    resumed = train(settings).model
    weights = [Path(model) / "open_clip_model.safetensors" for model in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_second_one_ends_it_at_once(world: Any, tmp_path: Path, signals: dict[int, list[int]]) -> None:
    signals[4] = [signal.SIGINT, signal.SIGINT]
    with pytest.raises(KeyboardInterrupt) as caught:
        train(world.settings(tmp_path / "run", checkpoint_every=100))
    assert not isinstance(caught.value, Interrupted)
    assert steps_on_disk(tmp_path / "run") == []


def test_another_signal_beside_the_first_does_not_hurry(
    world: Any, tmp_path: Path, signals: dict[int, list[int]]
) -> None:
    """A launcher hands on Ctrl-C as SIGTERM, to processes that may have had the terminal's own."""
    signals[2] = [signal.SIGINT, signal.SIGTERM]
    with pytest.raises(Interrupted):
        train(world.settings(tmp_path / "run", checkpoint_every=100))
    assert steps_on_disk(tmp_path / "run") == [3]


def test_a_signal_that_is_ignored_stays_ignored(world: Any, tmp_path: Path, signals: dict[int, list[int]]) -> None:
    signals[2] = [signal.SIGINT]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(world.settings(tmp_path / "run")).steps == 8
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_says_where_it_goes_on_and_ends_as_the_signal_asks(
    world: Any, tmp_path: Path, signals: dict[int, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    words = ["distill", world.shards, "--cache", world.cache, "--student", world.student, "--out", out]
    signals[1] = [signal.SIGTERM]
    assert main([*words, "--steps", "4", "--batch-size", "6"]) == 128 + signal.SIGTERM
    assert "stopped after step 2 of 4, with a checkpoint: the same command goes on" in capsys.readouterr().err
    signals[2] = [signal.SIGTERM, signal.SIGTERM]
    assert main([*words, "--steps", "4", "--batch-size", "6"]) == 128 + signal.SIGTERM
    assert "clipstill: interrupted. What was published stays" in capsys.readouterr().err
    assert main([*words, "--steps", "4", "--batch-size", "6"]) == 0


@pytest.mark.parametrize(("minutes", "expected"), [(1e-9, list(range(1, 9))), (0.0, [8]), (10.0, [8])])
def test_a_checkpoint_is_due_by_time(world: Any, tmp_path: Path, minutes: float, expected: list[int]) -> None:
    train(world.settings(tmp_path / "run", checkpoint_every=100, checkpoint_minutes=minutes, keep=9))
    assert steps_on_disk(tmp_path / "run") == expected


PROGRAM = """
import functools, json, os, signal, sys
import open_clip
from distill.training.interrupt import Interrupted
from distill.training.ranks import Ranks
from distill.training.run import Run
from tests.distill import ranks_program as program

open_clip.get_tokenizer = functools.cache(open_clip.get_tokenizer)
plain = Run.step

def step(self, batch):
    # The second process alone is asked, and only once.
    if self.ranks.rank == 1 and batch.step == 2 and os.environ.get("ASKED"):
        os.kill(os.getpid(), signal.SIGTERM)
    return plain(self, batch)

def work(settings):
    Run.step = step
    try:
        program.train(program.read(settings))
    except Interrupted as interrupted:
        assert interrupted.signal == signal.SIGTERM
        os._exit(77)
    os._exit(0)

program.work = work
settings = json.loads(sys.argv[1])
first = program.start(2, settings)
os.environ["ASKED"] = ""
print(json.dumps([first, sorted(os.listdir(settings["out"] + "/checkpoints")), program.start(2, settings)]))
"""


def test_processes_end_at_one_step_whichever_of_them_is_asked(world: Any, tmp_path: Path) -> None:
    """And with a checkpoint due all the time none waits for another that wants none."""
    settings = world.settings(
        tmp_path / "run", checkpoint_every=100, checkpoint_minutes=1e-9, keep=9, losses={"affinity": 1.0, "fd": 5.0}
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(written(settings))],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ASKED": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, found, second = json.loads(done.stdout.splitlines()[-1])
    assert first == [77, 77]
    # Said after step 3, heard after step 4; of minutes that had gone by after step 1 one hears after step 2.
    assert found == ["00000002", "00000003", "00000004"]
    assert second == [0, 0]
    whole = train(replace(settings, out=str(tmp_path / "whole"))).loss
    assert json.loads((tmp_path / "run" / "done.json").read_text())["loss"] == pytest.approx(whole, rel=1e-4)
