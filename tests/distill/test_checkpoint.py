"""A checkpoint gives back the whole state, or is not there."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.checkpoint import Checkpoints
from distill.optim import make_adamw
from distill.settings import OptimiserSettings
from shards import UserError


class Odd(nn.Module):
    """Tied weights, a transposed one, batch norm with its counter, a scalar, and a parameter no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(3, 4).T)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("mask", torch.ones(2, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.tied(self.first(x))) @ self.turned * self.scale).square().sum()


def make(seed: int) -> tuple[Odd, nn.Module, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model, loss = Odd(), nn.Linear(2, 2)
    return model, loss, make_adamw([model, loss], OptimiserSettings(lr=0.05))


def advance(state: tuple[Odd, nn.Module, torch.optim.AdamW], steps: range) -> None:
    model, loss, optimiser = state
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        (model(x) + loss(torch.ones(2)).sum()).backward()
        optimiser.step()
        optimiser.zero_grad()


def tensors(state: tuple[Odd, nn.Module, torch.optim.AdamW]) -> dict[str, Tensor]:
    model, loss, optimiser = state
    moments = optimiser.state_dict()["state"]
    return {
        **model.state_dict(),
        **{f"loss {name}": value for name, value in loss.state_dict().items()},
        **{f"moment {number} {name}": value for number, found in moments.items() for name, value in found.items()},
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    state = make(0)
    advance(state, range(3))
    Checkpoints(tmp_path).save(3, *state, {"scaler": {}, "more": [1, 2.5]})
    kept = copy.deepcopy(tensors(state))
    advance(state, range(3, 6))
    other = make(1)
    advance(other, range(10, 12))
    read = Checkpoints(tmp_path).load(3, *other)
    assert (read["step"], read["more"]) == (3, [1, 2.5])
    assert_same(tensors(other), kept)
    assert other[0].first.weight is other[0].tied.weight
    assert any("step" in name for name in kept)
    advance(other, range(3, 6))
    assert_same(tensors(other), tensors(state))


def test_an_optimiser_that_has_not_stepped_yet_is_kept_too(tmp_path: Path) -> None:
    """As when fp16 skipped every step so far; and a loss without parameters."""
    model, _, _ = make(0)
    loss = nn.Identity()
    optimiser = make_adamw([model, loss], OptimiserSettings())
    Checkpoints(tmp_path).save(1, model, loss, optimiser, {})
    other, _, _ = make(1)
    Checkpoints(tmp_path).load(1, other, loss, make_adamw([other, loss], OptimiserSettings()))
    assert_same(other.state_dict(), model.state_dict())


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    state = make(0)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == []
    for step in (5, 10, 99_999_999, 100_000_000):
        checkpoints.save(step, *state, {})
    assert checkpoints.steps() == [99_999_999, 100_000_000]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["100000000", "99999999"]


def test_half_written_checkpoints_are_not_seen_and_go_away(tmp_path: Path) -> None:
    state = make(0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, *state, {})
    half = tmp_path / "checkpoints" / ".0123.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoints.steps() == [4]
    checkpoints.save(8, *state, {})
    assert not half.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "loss.safetensors", "optimiser.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    state = make(0)
    advance(state, range(1))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, *state, {})
    path = tmp_path / "checkpoints" / "00000004" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"checkpoints/00000004: the checkpoint cannot be read .*Delete its folder"):
        checkpoints.load(4, *make(1))
    path.unlink()
    with pytest.raises(UserError, match=r"cannot be read"):
        checkpoints.load(4, *make(1))


def test_state_is_plain_json(tmp_path: Path) -> None:
    state = make(0)
    advance(state, range(1))
    Checkpoints(tmp_path).save(1, *state, {})
    text = (tmp_path / "checkpoints" / "00000001" / "state.json").read_text()

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    groups = json.loads(text, parse_constant=refuse)["optimiser"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
