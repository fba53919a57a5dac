"""Gates, expected sparsity, penalty and target against TinyCLIP's formulas in numpy, gradients by differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_models.shapes import FullShape, LayerShape, TowerShape
from distill.pruning import PruneSettings
from distill.pruning.gates import Gates, drawn, open_probability, selected
from distill.pruning.sparsity import expected_sparsity, sparsity_penalty
from shards import UserError
from tests.distill import pruning_formulas as formulas
from tests.distill.pruning_formulas import Array

IMAGE = TowerShape(width=12, layers=(LayerShape(heads=3, mlp=48),) * 2, full=FullShape(width=12, heads=3, mlp=48))
TEXT = TowerShape(width=8, layers=(LayerShape(heads=2, mlp=32),) * 3, full=FullShape(width=8, heads=2, mlp=32))


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(0, 2, shape)


def tensor(values: Array) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def differences(function: Callable[[Array], float], at: Array) -> Array:
    steps = 1e-6 * np.eye(len(at))
    return np.array([(function(at + step) - function(at - step)) / 2e-6 for step in steps])


def test_gates_in_training() -> None:
    uniform = np.random.default_rng(1).uniform(0, 1, 60)
    at, weights = numbers(2, 60), numbers(3, 60)
    log_alpha = tensor(at)
    gates = drawn(log_alpha, torch.tensor(uniform))
    np.testing.assert_allclose(gates.detach(), formulas.training_gate(at, uniform), rtol=1e-12)
    values = gates.detach().numpy()
    assert (values == 0).any()
    assert (values == 1).any()
    (gates * torch.tensor(weights)).sum().backward()
    expected = differences(lambda x: float(formulas.training_gate(x, uniform) @ weights), at)
    np.testing.assert_allclose(log_alpha.grad, expected, atol=1e-8)


def test_the_probability_to_be_open_is_how_often_gates_are() -> None:
    at = np.array([-10.0, -3.0, 0.0, 1.5, 30.0])
    probability = open_probability(tensor(at)).detach()
    np.testing.assert_allclose(probability, formulas.probability(at), rtol=1e-12)
    assert probability[-1] == pytest.approx(1 - 1e-6, abs=1e-12)
    # P(u > u0), where u0 is the draw at which the gate of log α = 0 leaves 0.
    uniform = np.random.default_rng(2).uniform(0, 1, 200_000)
    often = [(drawn(torch.full((1,), a), torch.tensor(uniform)) > 0).double().mean() for a in at]
    closed = formulas.sigmoid((2 / 3) * np.log(1 / 11) - at)
    np.testing.assert_allclose(often, 1 - closed, atol=4e-3)


@pytest.mark.parametrize("seed", range(4))
def test_gates_in_evaluation(seed: int) -> None:
    at = numbers(seed, 40)
    found = selected(tensor(at).detach())
    expected = formulas.evaluation_gate(at)
    assert 0 < (expected == 0).sum() < 40
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_of_equal_gates_the_first_close_and_the_last_dimension_stays() -> None:
    at = torch.tensor([-4.0, 4.0, -4.0, -4.0, 4.0])
    assert (selected(at) > 0).tolist() == [False, True, False, False, True]
    assert (selected(torch.zeros(8)) > 0).tolist() == [False] + [True] * 7
    assert (selected(torch.full((3,), -9.0)) > 0).tolist() == [False] * 3
    assert (selected(torch.full((3,), -9.0), at_least=1) > 0).tolist() == [False, False, True]


def masked() -> list[Gates]:
    towers = [Gates(IMAGE).double(), Gates(TEXT).double()]
    for seed, gates in enumerate(towers):
        for place, row in enumerate(gates.parameters()):
            row.data = torch.tensor(numbers(10 * seed + place, *row.shape))
    return towers


def test_sparsity_is_pooled_over_towers() -> None:
    towers = masked()
    sizes = [
        formulas.expected_parameters(*(row.detach().numpy() for row in gates.parameters()), d, heads)
        for gates, d, heads in zip(towers, (12, 8), (3, 2), strict=True)
    ]
    full = formulas.prunable(12, 2) + formulas.prunable(8, 3)
    assert (IMAGE.full_prunable, TEXT.full_prunable) == (formulas.prunable(12, 2), formulas.prunable(8, 3))
    assert IMAGE.prunable == IMAGE.full_prunable
    assert float(expected_sparsity(towers).detach()) == pytest.approx(1 - sum(sizes) / full, rel=1e-12)
    assert [float(gates.expected().detach()) for gates in towers] == pytest.approx(sizes, rel=1e-12)


@pytest.mark.parametrize("target", [0.1, 0.9])
def test_the_penalty_and_its_gradients(target: float) -> None:
    towers = masked()
    multipliers = torch.tensor([10.0, 7.0], dtype=torch.float64, requires_grad=True)
    value = sparsity_penalty(expected_sparsity(towers), target, multipliers)
    value.backward()
    rows = [row for gates in towers for row in gates.parameters()]
    parts = np.cumsum([len(row) for row in rows])[:-1]

    def by_hand(flat: Array) -> float:
        hidden, heads, mlp, *text = np.split(flat, parts)
        kept = formulas.expected_parameters(hidden, heads, mlp, 12, 3) + formulas.expected_parameters(*text, 8, 2)
        full = formulas.prunable(12, 2) + formulas.prunable(8, 3)
        return formulas.penalty(1 - kept / full, target, 10.0, 7.0)

    at = np.concatenate([row.detach().numpy() for row in rows])
    assert (by_hand(at) > 0) == (target > 0.5)
    assert float(value.detach()) == pytest.approx(by_hand(at), rel=1e-12)
    np.testing.assert_allclose(torch.cat([row.grad for row in rows]), differences(by_hand, at), atol=1e-8)
    gap = max(target - float(expected_sparsity(towers).detach()), 0)
    assert multipliers.grad is not None
    assert multipliers.grad.tolist() == pytest.approx([gap, gap**2])


def test_the_target_rises_over_the_ramp() -> None:
    settings = PruneSettings(target=0.5, start=0.25, ramp=1000)
    assert [settings.target_at(step) for step in (0, 500, 1000, 5000)] == [0.25, 0.375, 0.5, 0.5]
    assert PruneSettings(target=0.3, ramp=0).target_at(0) == 0.3
    assert PruneSettings(target=0.5, ramp=1000).target_at(500) == 0.25


def test_pruning_goes_on_from_what_is_gone() -> None:
    settings = PruneSettings(target=0.5, ramp=1000)
    assert [settings.begun_at(0.3).target_at(step) for step in (0, 500, 1000)] == pytest.approx([0.3, 0.4, 0.5])
    given = PruneSettings(target=0.5, start=0.25)
    assert given.begun_at(0.3) == given
    with pytest.raises(UserError, match=r"has lost 60.0% .*, and 50.0% are to go"):
        settings.begun_at(0.6)
    with pytest.raises(UserError, match=r"has lost 0.0% .* go on from 25.0%. Give .* the stage before"):
        given.begun_at(0.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"target": 1.0}, "--prune is 1.0, it must be a number, above 0 and below 1"),
        ({"target": 0.2, "start": 0.3}, "cannot rise from 0.3 to 0.2"),
        ({"target": 0.2, "ramp": -1}, "--prune-ramp is -1"),
        ({"target": 0.2, "lr": 0.0}, "--prune-lr is 0.0, it must be a number, above 0"),
    ],
)
def test_settings_refuse(wrong: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        PruneSettings(**wrong)


VIT_B = ((768, 12), (512, 8))
"""Width and heads of ViT-B/32's towers, of 12 layers each."""


def stage_two(removed: float | None, kept: float) -> float:
    """TinyCLIP's expected sparsity when √½ of each row is kept at `kept` and the others are at `removed`, or gone."""
    sizes = []
    for width, heads in VIT_B:
        rows = []
        for size in (width, 12 * heads, 12 * 4 * width):
            left = round(size * 0.5**0.5)
            rows.append(np.array([kept] * left + ([] if removed is None else [removed] * (size - left))))
        sizes.append(formulas.expected_parameters(*rows, width, heads))
    return 1 - sum(sizes) / sum(formulas.prunable(width, 12) for width, _ in VIT_B)


def test_the_next_stage_begins_at_the_published_sparsity() -> None:
    """TinyCLIP goes on with removed units at log α = -10, here they are gone: 1e-4 apart, until log α is clamped.

    From the first step on TinyCLIP expects P(open) = 0.047 of what is gone: two points less than has been reached.
    """
    towers = []
    for width, heads in VIT_B:
        left = [round(size * 0.5**0.5) for size in (width, 12 * heads, 12 * 4 * width)]
        # How units are dealt to layers does not count.
        layers = (LayerShape(heads=left[1], mlp=left[2]), *(LayerShape(heads=0, mlp=0),) * 11)
        full = FullShape(width=width, heads=heads, mlp=4 * width)
        towers.append(Gates(TowerShape(width=left[0], layers=layers, full=full)).double())
    ours = float(expected_sparsity(towers).detach())
    assert ours == pytest.approx(stage_two(None, 10.0), abs=1e-12)
    assert 0.5 < stage_two(-10.0, 10.0) + 1e-5 < ours < stage_two(-10.0, 10.0) + 1.2e-4
    for gates in towers:
        gates.clamp()
    ours = float(expected_sparsity(towers).detach())
    limit = float(np.log(100))
    assert ours == pytest.approx(stage_two(None, limit), abs=1e-12)
    assert stage_two(-limit, limit) == pytest.approx(ours - 0.020, abs=1e-3)
    # On request the removed are counted as there.
    for gates in towers:
        gates.counts_removed = True
    counted = expected_sparsity(towers)
    assert float(counted.detach()) == pytest.approx(stage_two(-limit, limit), abs=1e-12)
    counted.backward()
    gradient = [row.grad for gates in towers for row in gates.parameters() if row.grad is not None]
    assert len(gradient) == 6
    assert all((row < 0).all() for row in gradient), "what is left is pulled as ever"
    assert formulas.probability(np.array([-limit]))[0] == pytest.approx(0.0471, abs=1e-4)
