"""The schedule is its closed form, and weight decay falls on matrices only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clip_models import create_student
from distill.settings import OptimiserSettings
from distill.training.optim import make_adamw, make_average
from distill.training.schedule import learning_rate


def test_the_rate_rises_linearly_then_falls_along_half_a_cosine() -> None:
    settings = OptimiserSettings(lr=0.8, warmup=4)
    rates = [learning_rate(step, 12, settings) for step in range(12)]
    rising = [0.2, 0.4, 0.6, 0.8]
    falling = [0.8 * math.cos(math.pi * k / 16) ** 2 for k in range(8)]  # = 0.4 (1 + cos(pi k / 8))
    assert rates == pytest.approx(rising + falling, rel=1e-12)
    assert learning_rate(8, 12, settings) == pytest.approx(0.4)
    assert learning_rate(12, 12, settings) == pytest.approx(0, abs=1e-15)


def test_a_cosine_ends_where_it_is_told_to() -> None:
    settings = OptimiserSettings(lr=1.0, warmup=2, final_lr=0.1)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    falling = [0.1 + 0.9 * math.cos(math.pi * k / 16) ** 2 for k in range(8)]
    assert rates == pytest.approx([0.5, 1.0, *falling], rel=1e-12)


def test_a_constant_rate_stays() -> None:
    settings = OptimiserSettings(lr=0.6, warmup=3, schedule="constant", final_lr=0.1)
    rates = [learning_rate(step, 9, settings) for step in range(9)]
    assert rates == pytest.approx([0.2, 0.4, *[0.6] * 7], rel=1e-12)


@pytest.mark.parametrize(
    ("decay", "falling"),
    [
        (0.25, [2.0] * 4 + [1.7, 1.4, 1.1, 0.8]),
        (0.5, [2.0, 1.85, 1.7, 1.55, 1.4, 1.25, 1.1, 0.95, 0.8, 0.65][2:]),
        (0.01, [2.0] * 8),
    ],
)
def test_wsd_stays_and_falls_linearly_in_its_last_part(decay: float, falling: list[float]) -> None:
    """The last 8 of 20 steps; the end itself is where a 21st step would be."""
    settings = OptimiserSettings(lr=2.0, warmup=2, schedule="wsd", final_lr=0.5, decay=decay)
    rates = [learning_rate(step, 20, settings) for step in range(20)]
    assert rates[:11] == pytest.approx([1.0] + [2.0] * 10, rel=1e-12)
    assert rates[12:] == pytest.approx(falling, rel=1e-12)


@pytest.mark.parametrize(
    ("warmup", "within", "steps", "taken"),
    [
        (None, 1.0, 40, 4),
        (None, 1.0, 5000, 500),
        (None, 1.0, 100_000, 500),
        (None, 1.0, 3, 0),
        (30, 1.0, 40, 30),
        (30, 1.0, 20, 20),
        (10_000, 0.1, 187, 18),
        (10_000, 0.1, 468_000, 10_000),
    ],
)
def test_warm_up_takes_a_tenth_at_most_unless_asked_for(
    warmup: int | None, within: float, steps: int, taken: int
) -> None:
    settings = OptimiserSettings(lr=0.8, schedule="constant", warmup=warmup, warmup_within=within)
    assert settings.warmup_steps(steps) == taken
    rates = [learning_rate(step, steps, settings) for step in range(steps)]
    assert rates[taken:] == [0.8] * (steps - taken)
    assert rates[:taken] == pytest.approx([0.8 * (step + 1) / taken for step in range(taken)])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 500), (10, 10), (10, 9), (10, 500), (500, 0)])
def test_the_rate_is_sane_at_any_length(steps: int, warmup: int) -> None:
    settings = OptimiserSettings(lr=0.5, warmup=warmup)
    rates = [learning_rate(step, steps, settings) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    assert max(rates) == 0.5
    top = rates.index(0.5)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_norms_biases_and_scales_are_not_decayed(world: Any) -> None:
    model, _ = create_student(world.student, 0)
    loss = nn.Linear(3, 4)
    model.text_projection.requires_grad_(False)
    settings = OptimiserSettings(lr=0.1, weight_decay=0.3, loss_weight_decay=0.7, betas=(0.8, 0.9), eps=1e-5)
    optimiser = make_adamw(model, loss, settings)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    named = {**dict(model.named_parameters()), **{f"loss.{name}": p for name, p in loss.named_parameters()}}
    for name, parameter in named.items():
        if name == "text_projection":
            assert id(parameter) not in decay
            continue
        plain = name.endswith("bias") or "ln_" in name or name in ("logit_scale", "visual.class_embedding")
        assert decay.pop(id(parameter)) == (0.0 if plain else 0.7 if name.startswith("loss.") else 0.3), name
    assert not decay, "something is optimised that is not the model's"
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-5 for group in optimiser.param_groups)


@pytest.mark.parametrize("layout", ["plain", "transposed", "a slice"])
def test_a_step_is_adamw(layout: str) -> None:
    """Two steps by hand: moments with bias correction, decay beside the gradient, none for vectors."""
    layer = nn.Linear(2, 3).double()
    large = torch.ones(5, 7, dtype=torch.float64)
    if layout != "plain":
        layer.weight = nn.Parameter(torch.randn(2, 3).double().T if layout == "transposed" else large[:3, :2])
    settings = OptimiserSettings(lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6)
    optimiser = make_adamw(layer, nn.Identity(), settings)
    start = {name: p.detach().clone() for name, p in layer.named_parameters()}
    gradients = [{name: torch.randn_like(p) for name, p in start.items()} for _ in range(2)]
    for step in gradients:
        for name, parameter in layer.named_parameters():
            parameter.grad = step[name].clone()
        optimiser.step()
    for name, value in start.items():
        first, second, weight = torch.zeros_like(value), torch.zeros_like(value), value.clone()
        for count, step in enumerate(gradients, 1):
            first = 0.9 * first + 0.1 * step[name]
            second = 0.98 * second + 0.02 * step[name] ** 2
            weight = weight * (1 - 0.01 * (0.1 if value.ndim == 2 else 0.0))
            weight -= 0.01 * (first / (1 - 0.9**count)) / ((second / (1 - 0.98**count)).sqrt() + 1e-6)
        assert (dict(layer.named_parameters())[name] - weight).abs().max() < 1e-12
    assert (large == 1).all(), "memory beyond the slice was written to"


def test_an_average_is_exponential_over_weights_and_statistics() -> None:
    """Counts are copied; an attention mask's infinities stay infinities."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    average = make_average(model, 0.9)
    expected: dict[str, Any] = {}
    for step in range(4):
        torch.manual_seed(step)
        with torch.no_grad():
            for value in model.parameters():
                value.normal_()
        model(torch.randn(5, 2))
        now = {name: value.double().numpy().copy() for name, value in model.state_dict().items() if name != "mask"}
        expected = {name: 0.9 * expected[name] + 0.1 * now[name] if expected else now[name] for name in now}
        average.update_parameters(model)
    got = average.module.state_dict()
    assert got["mask"].tolist() == [0.0, -math.inf]
    assert int(got["1.num_batches_tracked"]) == 4
    for name, value in expected.items():
        if "num_batches" not in name:
            assert np.abs(got[name].numpy() - value).max() < 1e-6, name
