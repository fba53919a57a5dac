"""A step in micro-batches has the gradients of the step in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.training.ranks import Ranks
from distill.training.run import Run
from tests.distill.ranks_program import gradients

ALONE = Ranks(0, 1, torch.device("cpu"))
CASES: dict[str, dict[str, Any]] = {
    "one loss": {},
    "losses with parameters, a sigmoid with its bias": {
        "losses": {"affinity": 1.0, "fd": 20.0, "icl": 0.5, "afd": 0.5, "gd": 5.0, "sigmoid": 0.1}
    },
    "a pinned scale": {"student_scale": 20.0, "losses": {"contrastive": 1.0, "fd": 3.0}},
    "a locked tower": {"lock": ("text",)},
    "no cache": {"cache": ()},
}


@pytest.mark.parametrize("pieces", [2, 3, 6])
@pytest.mark.parametrize("name", CASES)
def test_micro_batches_have_the_gradients_of_the_whole(world: Any, tmp_path: Path, name: str, pieces: int) -> None:
    """In float64; 6 samples in pieces of 3, 2 and 1."""
    whole, told = gradients(world.settings(tmp_path, **CASES[name]), ALONE, [1])
    cut, in_pieces = gradients(world.settings(tmp_path, micro_batches=pieces, **CASES[name]), ALONE, [1])
    assert in_pieces[0]["keys"] == told[0]["keys"]
    assert in_pieces[0]["values"] == pytest.approx(told[0]["values"], rel=1e-12)
    assert cut.keys() == whole.keys()
    for key, gradient in whole.items():
        assert (cut[key] - gradient).abs().max() <= 1e-12 * max(1e-3, float(gradient.abs().max())), key
    assert ("1/model.logit_scale" in whole) == (name != "a pinned scale")
    assert any("visual" in key for key in whole)
    assert any("transformer.resblocks" in key and "visual" not in key for key in whole) == (name != "a locked tower")
    if "sigmoid" in name:
        assert whole["1/model.logit_bias"].abs() > 1e-4
        assert whole["1/loss.losses.fd.projections.0.image.weight"].abs().max() > 1e-4


def moments(run: Run, step: int = 0) -> list[Tensor]:
    """The gradients of a step as the optimiser got them."""
    before = [parameter.detach().clone() for parameter in run.student.parameters()]
    run.step(run.loader.batch(step))
    moved = [not torch.equal(a, b) for a, b in zip(before, run.student.parameters(), strict=True)]
    assert any(moved)
    return [state["exp_avg"] / 0.1 for state in run.optimiser.state.values()]


@pytest.mark.parametrize(
    ("changes", "closeness"),
    [
        ({"precision": "fp32"}, 1e-5),
        # The scaler's factor is on the gradient that is carried from pass to pass, and off again. Rounded to half.
        ({"precision": "fp16"}, 3e-2),
        ({"precision": "bf16"}, 1e-1),
    ],
)
def test_micro_batches_in_every_precision(
    world: Any, tmp_path: Path, changes: dict[str, Any], closeness: float
) -> None:
    optimiser = {"clip_norm": 0.0, "warmup": 0, "lr": 1e-4}
    found = []
    for pieces in (1, 3):
        run = Run(world.settings(tmp_path, micro_batches=pieces, optimiser=optimiser, **changes))
        if run.scaler.is_enabled():
            run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        found.append(torch.cat([moment.flatten() for moment in moments(run)]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < closeness
    assert float(found[0].norm()) > 1e-2


def test_both_passes_see_the_same_masks(world: Any, tmp_path: Path) -> None:
    """Carried to other patches than the loss saw, the gradient would be of another function.

    Worked out here: a forward of each piece with its seed, all of them kept, and one loss.
    """
    settings = world.settings(tmp_path, patch_mask=0.5, micro_batches=3, losses={"affinity": 1.0})
    run, plain = Run(settings), Run(settings)
    batch = run.loader.batch(2)
    got = run._gradients(batch, {"affinity": 1.0}, lambda total: total)

    gradient = plain._gradients
    parts = []
    for start in (0, 1, 2):
        gradient._begin(2, start)
        piece = slice(start, None, 3)
        parts.append(plain.student(batch.images[piece], {"txt": batch.tokens["txt"][piece]}))
    order = torch.tensor([0, 3, 1, 4, 2, 5]).argsort()
    joined = {name: torch.cat([part[name] for part in parts])[order] for name in ("image", "text/txt")}
    total, _ = gradient._total({**joined, **plain.student.scalars()}, batch.targets, {"affinity": 1.0})
    total.backward()
    assert float(got["loss"]) == pytest.approx(float(total.detach()), rel=1e-6)
    largest = 0.0
    for (name, mine), other in zip(run.student.named_parameters(), plain.student.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None or not mine.grad.any(), name
            continue
        assert mine.grad is not None
        assert (mine.grad - other.grad).abs().max() <= 1e-5 * max(1e-2, float(other.grad.abs().max())), name
        largest = max(largest, float(other.grad.abs().max()))
    assert largest > 1e-2


def test_randomness_is_of_the_step_and_the_place_alone(world: Any, tmp_path: Path) -> None:
    """So that a resumed run repeats it: whatever was drawn before."""
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        run = Run(world.settings(tmp_path, patch_mask=0.5))
        losses.append([float(run.step(run.loader.batch(step))["loss"]) for step in (0, 1)])
    assert losses[0] == losses[1]
    other = Run(world.settings(tmp_path, patch_mask=0.5, seed=1))
    embedded = []
    for step in (0, 1):
        run._gradients._begin(step, 0)
        with torch.no_grad():
            batch = other.loader.batch(0)
            embedded.append(other.student(batch.images, {})["image"])
    assert not torch.equal(*embedded)


def test_parameters_that_only_a_loss_has_are_trained_alone(world: Any, tmp_path: Path) -> None:
    for pieces in (1, 2):
        losses = {"fd": 1.0}
        locked = world.settings(
            tmp_path, losses=losses, lock=("image", "text"), student_scale=5.0, micro_batches=pieces
        )
        run = Run(locked)
        before = {name: value.clone() for name, value in run.model.state_dict().items()}
        projection = run.loss.losses["fd"].projections[0].image.weight
        first = projection.detach().clone()
        run.step(run.loader.batch(0))
        assert not torch.equal(projection, first)
        assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())
