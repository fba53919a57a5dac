"""Impossible settings are refused with the value seen; what does not decide the weights is not compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from distill.settings import EvaluationSettings, LossTerm, OptimiserSettings, RunSettings
from shards import UserError


def settings(**changes: Any) -> RunSettings:
    return RunSettings(**{"shards": "S", "out": "O", "student": "X", "cache": "C", "steps": 10, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"affinty": 1.0}}, "there is no loss 'affinty'.*contrastive, affinity, crd, fd"),
        ({"losses": {"affinity": 1.0}, "cache": ()}, "'affinity' needs a teacher.*--cache"),
        ({"steps": None}, "length is needed, once"),
        ({"epochs": 2.0}, "length is needed, once"),
        ({"steps": 0}, "steps is 0, it must be a whole number, at least 1"),
        ({"steps": None, "epochs": -1.0}, r"epochs is -1\.0"),
        ({"steps": None, "epochs": float("nan")}, "epochs is nan"),
        ({"batch_size": 0}, "^--batch-size is 0, it must be a whole number, at least 1$"),
        (
            {"shards": ("S", "T"), "cache": ("C", "D"), "weights": {"T": 0.0}},
            r"^--weight T is 0\.0, it must be a number, above",
        ),
        ({"shards": ("S", "S"), "cache": ("C", "D")}, "^SHARDS: S is given twice. Give each once$"),
        ({"lock": ("text", "text")}, "^--lock: text is given twice"),
        ({"losses": {"affinity": "much"}}, "^--loss affinity is 'much', it must be a table or a number$"),
        ({"views": 0}, "views is 0"),
        ({"log_every": 0}, "--log-every is 0"),
        ({"checkpoint_every": -5}, "--checkpoint-every is -5"),
        ({"student_scale": 0.0}, r"--student-scale is 0\.0"),
        ({"teacher_scale": -1.0}, r"--teacher-scale is -1\.0, it must be a table or a number, above 0"),
        ({"teacher_scale": {"one": 0.0}}, r"--teacher-scale is {'one': 0\.0}"),
        ({"max_scale": 0.0}, r"--max-scale is 0\.0"),
        ({"micro_batches": 0}, "--micro-batches is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"explosion": 0.5}, r"explosion is 0\.5, it must be 0 or above 1"),
        ({"patch_mask": 1.0}, r"--patch-mask is 1\.0, it must be a number, at least 0 and below 1"),
        ({"precision": "fp8"}, "precision is 'fp8', it must be one of fp32, bf16, fp16"),
        ({"lock": ("vision",)}, r"lock is \('vision',\), it must be a list of \(one of image, text\)"),
        ({"text_tower": "none"}, "--text-tower is 'none'"),
        ({"captions": ()}, r"captions is \(\), it must be a list of \(a text\), at least 1"),
        ({"join": "drop"}, "'drop'"),
        ({"cache": (), "losses": {"contrastive": 1}, "captions": ("json-x",)}, "json-x: no captions can be read"),
        ({"out": "s3://bucket/run"}, "s3://bucket/run: a run's folder must be on a local disk"),
        ({"losses": {"affinity": 0.0}}, r"the weight of affinity is 0\.0, it must be positive"),
        ({"losses": {"affinity": LossTerm(weight=((0.5, 1.0), (0.2, 2.0)))}}, "points of ascending 0 to 1"),
        ({"losses": {"affinity": LossTerm(weight=((0.0, 0.0), (1.0, 0.0)))}}, "points of ascending 0 to 1"),
        ({"losses": {"affinity": LossTerm(weight=((0.0, 1.0), (1.5, 2.0)))}}, "points of ascending 0 to 1"),
        ({"losses": {"gd": LossTerm(options={"from": "reference"})}}, "gd has no option 'from'.*It takes form"),
        ({"losses": {"gd": LossTerm(options={"form": "other"})}}, "gd's form is 'other'.*intended or reference"),
        *(
            ({"cache": (), "losses": {"contrastive": 1}, **change}, rf"something here .*{what}.* there is no cache")
            for change, what in (
                ({"join": "skip"}, "joins"),
                ({"teacher_scale": 9.0}, "scale"),
                ({"teachers": ("a",)}, "names teachers"),
                ({"text_tower": "cache"}, "text tower"),
            )
        ),
    ],
)
def test_impossible_runs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, r"lr is 0\.0, it must be a number, above 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"eps": -1e-6}, "eps is -1e-06"),
        ({"warmup": -1}, "warmup is -1, it must be a whole number, at least 0"),
        ({"weight_decay": -0.1}, r"--weight-decay is -0\.1"),
        ({"clip_norm": -5.0}, r"--clip-norm is -5\.0"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0\.9, 1\.0\)"),
        ({"betas": (0.9,)}, r"betas is \(0\.9,\), it must be a list of 2 of"),
        ({"schedule": "linear"}, "schedule is 'linear', it must be one of cosine, constant, wsd"),
        ({"decay": 0.0}, r"decay is 0\.0, it must be a number, above 0 and at most 1"),
        ({"final_lr": -1.0}, r"--final-lr is -1\.0"),
        ({"loss_weight_decay": -1.0}, r"loss_weight_decay is -1\.0"),
        ({"ema": 1.0}, r"ema is 1\.0, it must be a number, above 0 and below 1"),
    ],
)
def test_impossible_optimisers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimiserSettings(**changes)


def test_impossible_evaluations_are_refused() -> None:
    with pytest.raises(UserError, match=r"--eval-every is 0"):
        EvaluationSettings(on="S", every=0)
    with pytest.raises(UserError, match="--label was given, but no classes"):
        EvaluationSettings(on="S", label="L")
    with pytest.raises(UserError, match="S is given twice"):
        EvaluationSettings(on=("S", "S"))


def test_the_loss_defaults_to_what_there_is() -> None:
    def weights(**changes: Any) -> dict[str, Any]:
        return {name: term.weight for name, term in settings(**changes).terms().items()}

    assert weights() == {"affinity": 1.0}
    assert weights(cache=()) == {"contrastive": 1.0}
    # Affinities to a text tower that does not learn would be those of its own images.
    assert weights(text_tower="cache") == {"contrastive": 1.0}
    assert weights(losses={"contrastive": 0.5}) == {"contrastive": 0.5}


def test_a_weights_course_is_straight_between_its_points_and_level_beyond() -> None:
    term = LossTerm(weight=((0.2, 3.0), (0.6, 1.0), (0.6, 5.0), (0.8, 6.0)))
    at = [0.0, 0.2, 0.3, 0.4, 0.5999, 0.6, 0.7, 0.8, 1.0]
    expected = [3.0, 3.0, 2.5, 2.0, 1.0005, 5.0, 5.5, 6.0, 6.0]
    assert [term.at(through) for through in at] == pytest.approx(expected, rel=1e-12)
    assert LossTerm(weight=7).at(0.3) == 7.0


def test_identity_survives_json_and_ignores_places_and_logging() -> None:
    plain = settings()
    once = json.dumps(plain.identity())
    assert json.dumps(json.loads(once)) == once
    for same in (
        {"out": "P"},
        {"shards": "T"},
        {"cache": "D"},
        {"log_every": 1},
        {"checkpoint_every": 2},
        {"keep": 5},
        {"micro_batches": 2},
        {"checkpoint_activations": True},
        {"compile": True},
        {"explosion": 0.0},
        {"wandb": "project"},
        {"evaluation": EvaluationSettings(on="E")},
        {"losses": {"affinity": 1.0}},
        {"losses": {"affinity": LossTerm()}},
    ):
        assert replace(plain, **same).identity() == plain.identity(), same
    for other in (
        {"seed": 1},
        {"batch_size": 8},
        {"losses": {"affinity": 2.0}},
        {"precision": "bf16"},
        {"teacher_scale": 50.0},
        {"student_scale": 50.0},
        {"optimiser": OptimiserSettings(betas=(0.9, 0.99))},
        {"optimiser": OptimiserSettings(ema=0.9)},
        {"captions": ("json-x",)},
        {"lock": ("text",)},
        {"patch_mask": 0.5},
        {"max_scale": 50.0},
        {"losses": {"gd": LossTerm(options={"form": "reference"})}},
        {"losses": {"affinity": LossTerm(weight=((0.0, 1.0), (1.0, 2.0)))}},
    ):
        assert replace(plain, **other).identity() != plain.identity()
