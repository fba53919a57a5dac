"""Impossible settings are refused with the value seen; what does not decide the weights is not compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from distill.settings import OptimiserSettings, RunSettings
from shards import UserError


def settings(**changes: Any) -> RunSettings:
    return RunSettings(**{"shards": "S", "out": "O", "student": "X", "cache": "C", "steps": 10, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"affinty": 1.0}}, "there is no loss 'affinty'.*contrastive, affinity, feature"),
        ({"losses": {"affinity": 1.0}, "cache": None}, "'affinity' needs a teacher.*--cache"),
        ({"steps": None}, "length is needed, once"),
        ({"epochs": 2.0}, "length is needed, once"),
        ({"steps": 0}, "steps is 0, it must be positive"),
        ({"steps": None, "epochs": -1.0}, r"epochs is -1\.0"),
        ({"steps": None, "epochs": float("nan")}, "epochs is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"views": 0}, "views is 0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"checkpoint_every": -5}, "checkpoint_every is -5"),
        ({"student_scale": 0.0}, r"student_scale is 0\.0"),
        ({"teacher_scale": -1.0}, r"teacher_scale is -1\.0"),
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"lr is 0\.0, it must be positive"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"eps": -1e-6}, "eps is -1e-06"),
        ({"warmup": -1}, "warmup is -1, it must be 0 or more"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
        ({"clip_norm": -5.0}, r"clip_norm is -5\.0"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0\.9, 1\.0\)"),
    ],
)
def test_impossible_optimisers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimiserSettings(**changes)


def test_the_loss_defaults_to_what_there_is() -> None:
    assert settings().weights() == {"affinity": 1.0}
    assert settings(cache=None).weights() == {"contrastive": 1.0}
    assert settings(losses={"contrastive": 0.5}).weights() == {"contrastive": 0.5}


def test_identity_survives_json_and_ignores_places_and_logging() -> None:
    plain = settings()
    assert json.loads(json.dumps(plain.identity())) == plain.identity()
    for same in ({"out": "P"}, {"shards": "T"}, {"cache": "D"}, {"log_every": 1}, {"checkpoint_every": 2}):
        assert replace(plain, **same).identity() == plain.identity()
    assert settings(losses={"affinity": 1.0}).identity() == plain.identity()
    for other in (
        {"seed": 1},
        {"batch_size": 8},
        {"losses": {"affinity": 2.0}},
        {"precision": "bf16"},
        {"teacher_scale": 50.0},
        {"student_scale": 50.0},
        {"optimiser": OptimiserSettings(betas=(0.9, 0.99))},
    ):
        assert replace(plain, **other).identity() != plain.identity()
