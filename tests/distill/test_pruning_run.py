"""Pruning runs: what they deliver, that they go on where they stopped, and that the next stage goes on from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_models import create_student, load_model, save_model
from distill.pruning import PruneSettings
from distill.settings import RunSettings
from distill.train import train


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "open_clip_model.safetensors")


@pytest.fixture
def pruned(world: Any, tmp_path: Path, save_student: Callable[..., str]) -> RunSettings:
    """A finished run in `a` that took a student of two layers to half its size, with an average of its weights."""
    student = save_student(tmp_path / "student.json", layers=2)
    model, config = create_student(student, 0)
    save_model(model, config, str(tmp_path / "first"))
    settings: RunSettings = world.settings(
        tmp_path / "a",
        student=student,
        initial=str(tmp_path / "first"),
        prune=PruneSettings(target=0.5, ramp=16, lr=0.3),
        steps=24,
        checkpoint_every=12,
        optimiser={"ema": 0.9},
    )
    train(settings)
    return settings


def test_a_pruning_run_delivers_the_dense_model(pruned: RunSettings, tmp_path: Path) -> None:
    report = json.loads((tmp_path / "a" / "pruning.json").read_text())
    assert report["sparsity"] > 0.4
    model = load_model(str(tmp_path / "a" / "model")).model
    found = [parameter.numel() for name, parameter in model.named_parameters() if ".attn." in name or ".mlp." in name]
    assert sum(found) == report["parameters"]["kept"]
    line = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert line["prune/target"] == pytest.approx(0.5)
    assert line["prune/lambda1"] > 10

    # Killed between two checkpoints, it goes on to the same bytes.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "model")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "00000024")
    (tmp_path / "b" / "done.json").unlink()
    train(replace(pruned, out=str(tmp_path / "b")))
    again = weights(tmp_path / "b")
    assert all(torch.equal(again[name], value) for name, value in weights(tmp_path / "a").items())

    # In micro-batches every piece has the step's gates.
    train(replace(pruned, out=str(tmp_path / "c"), micro_batches=3))
    for name, value in weights(tmp_path / "c").items():
        torch.testing.assert_close(value, again[name], rtol=1e-3, atol=2e-3)


@pytest.mark.usefixtures("pruned")
def test_the_next_stages_go_on_from_it(world: Any, tmp_path: Path) -> None:
    model = str(tmp_path / "a" / "model")
    further = world.settings(
        tmp_path / "d",
        student=model,
        initial=model,
        prune=PruneSettings(target=0.8, start=0.5, ramp=8, lr=0.3),
        steps=16,
    )
    train(further)
    first, second = (json.loads((tmp_path / run / "pruning.json").read_text()) for run in "ad")
    assert second["parameters"]["before"] == first["parameters"]["kept"]
    assert second["parameters"]["kept"] < first["parameters"]["kept"]
    assert second["parameters"]["full"] == first["parameters"]["full"]
    end = str(tmp_path / "d" / "model")
    trained = train(world.settings(tmp_path / "e", student=end, initial=end, steps=2))
    assert {k: v.shape for k, v in weights(tmp_path / "e").items()} == {
        k: v.shape for k, v in weights(tmp_path / "d").items()
    }
    assert load_model(trained.model).config == load_model(end).config
