"""The log of a run is on disk when it is written, and holds nothing of a future that did not happen."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest

from distill.run_folder import read_log
from distill.training.logs import RunLog
from shards import UserError


def board(out: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's own reading of a run: scalar → (step, value)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

        events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_log_cut_in_the_middle_of_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write(1, {"loss": 2.0})
        log.write(2, {"loss": 1 / 3}, {"seconds": 0.5})
    path = tmp_path / "log.jsonl"
    assert read_log(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1 / 3, "measured": {"seconds": 0.5}}]
    path.write_text(path.read_text()[:-8])
    assert read_log(path) == [{"step": 1, "loss": 2.0}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_a_line_is_on_disk_for_both_readers_when_it_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        (events,) = (tmp_path / "tensorboard").iterdir()
        for step in range(1, 40):
            before = events.stat().st_size
            log.write(step, {"loss": step / 2, "lr": 0.1}, {"waited": 0.25})
            # A scalar is a record of at least 12 bytes around its protocol buffer.
            assert events.stat().st_size >= before + 3 * 16, step
            assert read_log(tmp_path / "log.jsonl")[-1]["step"] == step
    scalars = board(tmp_path)
    assert set(scalars) == {"loss", "lr", "measured/waited"}
    assert scalars["loss"] == [(step, step / 2) for step in range(1, 40)]
    assert scalars["measured/waited"] == [(step, 0.25) for step in range(1, 40)]


def test_what_lies_beyond_the_step_that_a_run_goes_on_from_is_cut(tmp_path: Path) -> None:
    """Evaluations too; what happened stays told."""
    with RunLog(tmp_path, 0) as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": float(step)})
            log.write(step, {"eval/x": step / 2})
            log.event(step, "starved", f"at {step}\nin two lines")
    with RunLog(tmp_path, 4) as log:
        log.event(4, "resumed", "again")
        log.write(6, {"loss": 7.0})
    assert [(line["step"], *line) for line in read_log(tmp_path / "log.jsonl")] == [
        (2, "step", "loss"),
        (2, "step", "eval/x"),
        (4, "step", "loss"),
        (4, "step", "eval/x"),
        (6, "step", "loss"),
    ]
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["kind"]) for event in told] == [
        (2, "starved"),
        (4, "starved"),
        (6, "starved"),
        (4, "resumed"),
    ]


def test_wandb_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--wandb mine: wandb is not installed\. Install it, or leave it out"):
        RunLog(tmp_path, 0, "mine")
