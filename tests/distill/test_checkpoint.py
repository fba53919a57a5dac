"""A checkpoint gives back the whole state, or is not there."""

from __future__ import annotations

import copy
import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.settings import OptimiserSettings
from distill.training import checkpoint
from distill.training.checkpoint import Checkpoints, flatten, unflatten
from distill.training.optim import make_adamw
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
    return model, loss, make_adamw(model, loss, OptimiserSettings(lr=0.05))


def save(
    checkpoints: Checkpoints, step: int, state: tuple[nn.Module, nn.Module, torch.optim.Optimizer], **more: Any
) -> None:
    """As a run saves, and wait until it is on disk."""
    model, loss, optimiser = state
    moments, groups = flatten(optimiser)
    parts = {"model": model.state_dict(), "loss": loss.state_dict(), "optimiser": moments}
    checkpoints.save(step, parts, {"groups": groups, **more})
    checkpoints.wait()


def load(
    checkpoints: Checkpoints, step: int, state: tuple[nn.Module, nn.Module, torch.optim.Optimizer]
) -> dict[str, Any]:
    """As a run resumes."""
    parts, kept = checkpoints.load(step)
    model, loss, optimiser = state
    model.load_state_dict(parts["model"])
    loss.load_state_dict(parts["loss"])
    unflatten(optimiser, parts["optimiser"], kept["groups"])
    return kept


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
    save(Checkpoints(tmp_path, 2), 3, state, more=[1, 2.5])
    kept = copy.deepcopy(tensors(state))
    advance(state, range(3, 6))
    other = make(1)
    advance(other, range(10, 12))
    read = load(Checkpoints(tmp_path, 2), 3, other)
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
    save(Checkpoints(tmp_path, 2), 1, (model, loss, make_adamw(model, loss, OptimiserSettings())))
    other, _, _ = make(1)
    load(Checkpoints(tmp_path, 2), 1, (other, loss, make_adamw(other, loss, OptimiserSettings())))
    assert_same(other.state_dict(), model.state_dict())


def test_training_may_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the state when it was saved. The next one waits for it, and so does leaving."""
    state, release, began = make(0), threading.Event(), threading.Event()
    advance(state, range(2))
    kept = copy.deepcopy(tensors(state))
    write = checkpoint.save_file

    def held(*arguments: Any) -> None:
        began.set()
        assert release.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", held)
    moments, groups = flatten(state[2])
    parts = {"model": state[0].state_dict(), "loss": state[1].state_dict(), "optimiser": moments}
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(2, parts, {"groups": groups})
        assert began.wait(30)
        assert checkpoints.steps() == []
        advance(state, range(2, 5))
        with torch.no_grad():
            for parameter in state[0].parameters():
                parameter.fill_(9.0)
        release.set()
        checkpoints.save(5, {"model": {}}, {})
        assert checkpoints.steps()[0] == 2
    assert checkpoints.steps() == [2, 5]
    other = make(1)
    load(checkpoints, 2, other)
    assert_same(tensors(other), kept)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_the_best(tmp_path: Path, keep: int) -> None:
    state = make(0)
    checkpoints = Checkpoints(tmp_path, keep)
    assert checkpoints.steps() == []
    there = [5, 10, 15, 99_999_999, 100_000_000]
    for step in there:
        if step == 10:
            checkpoints.best = 10
        save(checkpoints, step, state)
    assert checkpoints.steps() == sorted({10, *there[-keep:]})
    checkpoints.best = 100_000_000
    checkpoints.prune()
    names = sorted(f"{step:08d}" for step in there[-keep:])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names


def test_the_best_so_far_stays_until_a_better_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed in between resumes from a checkpoint that names the old one."""
    state = make(0)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.best = 1
    for step in (1, 2):
        save(checkpoints, step, state)
    seen: list[list[int]] = []
    write = checkpoint.save_file

    def noted(*arguments: Any) -> None:
        seen.append(checkpoints.steps())
        write(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", noted)
    checkpoints.best = 3
    save(checkpoints, 3, state)
    assert seen == [[1, 2]] * 3
    assert checkpoints.steps() == [3]


def test_half_written_checkpoints_are_not_seen_and_go_away(tmp_path: Path) -> None:
    state = make(0)
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 4, state)
    half = tmp_path / "checkpoints" / ".0123.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoints.steps() == [4]
    save(checkpoints, 8, state)
    assert not half.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "loss.safetensors", "optimiser.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    state = make(0)
    advance(state, range(1))
    checkpoints = Checkpoints(tmp_path, 2)
    save(checkpoints, 4, state)
    path = tmp_path / "checkpoints" / "00000004" / name
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"checkpoints/00000004: the checkpoint cannot be read .*Delete its folder"):
        checkpoints.load(4)


def test_a_checkpoint_that_cannot_be_written_is_an_error_at_the_next_or_at_the_end(tmp_path: Path) -> None:
    """A file stands where the folder should be; the disk is full."""
    state = make(0)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "checkpoints").write_text("")
    moments, groups = flatten(state[2])
    parts = {"model": state[0].state_dict(), "optimiser": moments}

    def save_twice(folder: Path, times: int) -> None:
        with Checkpoints(folder, 2) as checkpoints:
            for step in range(times):
                checkpoints.save(step, parts, {"groups": groups})

    for times in (1, 2):
        with pytest.raises(UserError, match=r"blocked/checkpoints: a checkpoint could not be written .*Make room"):
            save_twice(tmp_path / "blocked", times)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """Really: for a moment this process may write no file of more than 500 bytes."""
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, {"model": {"a": torch.zeros(10)}}, {})
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        checkpoints.save(2, {"model": {"a": torch.zeros(1000)}}, {})
        with pytest.raises(UserError, match=r"a checkpoint could not be written \(.*File too large") as caught:
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.where == str(tmp_path / "checkpoints")
    assert checkpoints.steps() == [1]
    checkpoints.save(2, {"model": {"a": torch.zeros(1000)}}, {})
    checkpoints.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000002"]


def test_what_went_wrong_before_is_not_hidden_by_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(KeyError, match="first"), Checkpoints(tmp_path, 2) as checkpoints:  # noqa: PT012
        checkpoints.save(1, {"model": {}}, {})
        raise KeyError("first")


def test_state_is_plain_json(tmp_path: Path) -> None:
    state = make(0)
    advance(state, range(1))
    save(Checkpoints(tmp_path, 2), 1, state)
    text = (tmp_path / "checkpoints" / "00000001" / "state.json").read_text()

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    groups = json.loads(text, parse_constant=refuse)["groups"]
    # Of the model, then of the loss: matrices, then the others.
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0, 0.01, 0.0]
