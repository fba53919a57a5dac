"""A run is made longer by more steps or epochs, and steps over a damaged checkpoint."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from distill.run_folder import read_log
from distill.training.train import train
from shards import UserError


def events(out: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["kind"]) for line in read_log(out / "events.jsonl")]


def test_a_finished_run_goes_on_when_its_epochs_are_raised(
    world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """26 samples are 4 batches an epoch. What it says of the rate is what the log then has."""
    out = tmp_path / "run"
    assert train(world.settings(out, steps=None, epochs=2, log_every=1)).steps == 8
    caplog.set_level(logging.WARNING)
    result = train(world.settings(out, steps=None, epochs=3, log_every=1))
    assert result.steps == 12
    assert json.loads((out / "done.json").read_text())["steps"] == 12
    lines = read_log(out / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    told = f"at step 8 it goes from {lines[7]['lr']:.3g} to {lines[8]['lr']:.3g}"
    (said,) = (record.getMessage() for record in caplog.records if "made longer" in record.getMessage())
    assert "made longer, from 8 to 12 steps" in said
    assert told in said
    assert "It is not what a run of 12 steps from the start would be" in said
    assert lines[8]["lr"] > 2 * lines[7]["lr"]
    assert events(out) == [(8, "lengthened"), (8, "resumed")]
    assert json.loads((out / "settings.json").read_text())["facts"]["steps"] == 12
    # Nothing is left to do, and nothing is said of it.
    caplog.clear()
    assert train(world.settings(out, steps=None, epochs=3, log_every=1)).samples_per_second is None
    assert "longer" not in caplog.text


def test_a_constant_rate_stays_and_an_unfinished_run_is_made_longer_too(
    world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a constant rate it is the very run that was long from the start."""
    constant = {"schedule": "constant", "warmup": 2}
    out, whole = tmp_path / "run", tmp_path / "whole"
    train(world.settings(out, steps=4, optimiser=constant))
    (out / "done.json").unlink()
    caplog.set_level(logging.WARNING)
    train(world.settings(out, steps=8, optimiser=constant))
    assert "it stays as it was" in caplog.text
    assert "It is not what" not in caplog.text
    train(world.settings(whole, steps=8, optimiser=constant))
    weights = [folder / "model" / "open_clip_model.safetensors" for folder in (out, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_only_its_length_may_change_and_only_upwards(world: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(world.settings(out, steps=4))
    for changes in ({"steps": 3}, {"steps": 8, "seed": 1}):
        with pytest.raises(UserError, match="this folder holds another run"):
            train(world.settings(out, **changes))
    for step in (out / "checkpoints").iterdir():
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    with pytest.raises(UserError, match="no checkpoint of it is left"):
        train(world.settings(out, steps=8))
    assert json.loads((out / "done.json").read_text())["steps"] == 4


@pytest.mark.parametrize("damage", ["cut", "state", "missing", "field", "number", "version"])
def test_a_damaged_newest_checkpoint_is_stepped_over_with_a_word(
    world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The run ends as if it had been killed a step earlier, and keeps as many whole checkpoints as before."""
    settings = world.settings(tmp_path / "run", keep=2)
    model = Path(train(settings).model) / "open_clip_model.safetensors"
    expected, out = model.read_bytes(), tmp_path / "run"
    (out / "done.json").unlink()
    newest = out / "checkpoints" / "00000008"
    if damage == "cut":
        file = newest / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "state":
        (newest / "state.json").write_text("[]")
    elif damage in {"field", "number", "version"}:
        state = json.loads((newest / "state.json").read_text())
        changed = {"field": {"watch": {}}, "number": {"step": state["step"] + 1}, "version": {"version": 0}}
        (newest / "state.json").write_text(json.dumps(state | changed[damage]))
    else:
        (newest / "optimiser.safetensors").unlink()
    caplog.set_level(logging.WARNING)
    model.unlink()
    train(settings)
    assert "00000008: the checkpoint cannot be read" in caplog.text
    assert "the run goes on from step 7" in caplog.text
    assert model.read_bytes() == expected
    assert sorted(path.name for path in newest.parent.iterdir()) == ["00000007", "00000008", "00000008.damaged"]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_by_itself(world: Any, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "run", keep=2)
    train(settings)
    (tmp_path / "run" / "done.json").unlink()
    for step in (7, 8):
        (tmp_path / "run" / "checkpoints" / f"{step:08d}" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"00000008: the checkpoint cannot be read.*Delete its folder"):
        train(settings)
