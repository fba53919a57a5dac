"""Losses in parts of their rows: the same value and gradient, and no B x B matrix whole."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill.losses import LOSSES, Embeddings, LossShape, Targets, WeightedSum, parts
from distill.training.ranks import Ranks
from tests.distill.ranks_program import gradients

B, DS, WIDTHS = 24, 5, (5, 8)
CLIP_KD = {"contrastive": 1.0, "crd": 1.0, "icl": 1.0, "fd": 2000.0}
SUMS: dict[str, dict[str, float]] = {name: {name: 1.0} for name in LOSSES} | {"clip-kd": CLIP_KD}


def rows(seed: int, size: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(size, width)))


def student(size: int = B, width: int = DS) -> Embeddings:
    values = (4 * rows(1, size, width), 2 * rows(2, size, width), torch.tensor(20.0), torch.tensor(-3.0))
    return Embeddings.of_raw(*(value.double().requires_grad_() for value in values))


def targets(size: int = B, widths: tuple[int, ...] = WIDTHS) -> Targets:
    def unit(seed: int, width: int) -> Tensor:
        return torch.nn.functional.normalize(rows(seed + width, size, width))

    return Targets({"txt": tuple(Embeddings(unit(10, w), unit(30, w), 50.0, -4.0) for w in widths)})


def value_and_gradients(
    weights: dict[str, float], said: Targets, rows: slice = slice(None)
) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(0)
    total = WeightedSum({name: LOSSES[name](LossShape(DS, WIDTHS)) for name in weights}).double()
    ours = student()
    value, _ = total({"txt": ours}, said, weights, rows)
    by: dict[str, Any] = {"image": ours.raw_image, "text": ours.raw_text}
    by |= {"scale": ours.logit_scale, "bias": ours.logit_bias} | dict(total.named_parameters())
    found = torch.autograd.grad(value, list(by.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), dict(zip(by, found, strict=True))


@pytest.mark.parametrize("block", [B * B // 2, 7 * B, B], ids=["two parts", "parts of unequal length", "row by row"])
@pytest.mark.parametrize("kind", ["all rows", "a process's", "of samples with a teacher"])
@pytest.mark.parametrize("name", SUMS)
def test_parts_have_the_value_and_the_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str, block: int
) -> None:
    said, own = targets(), slice(None) if kind == "all rows" else slice(8, 16)
    if kind == "of samples with a teacher":
        said = replace(said, present=torch.arange(B) % 3 != 1)
    value, slopes = value_and_gradients(SUMS[name], said, own)
    monkeypatch.setattr(parts, "BLOCK", block)
    assert len(parts.parts_of(B, own)) > 1 or kind != "all rows"
    got, found = value_and_gradients(SUMS[name], said, own)
    assert got == pytest.approx(value, rel=1e-12)
    for leaf, slope in slopes.items():
        assert (found[leaf] - slope).abs().max() <= 1e-12 * max(1, float(slope.abs().max())), leaf
    assert max(float(slope.abs().max()) for slope in slopes.values()) > 1e-4


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_step_is_the_same_in_parts(world: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    """Through the student, in micro-batches too; in float64."""
    alone = Ranks(0, 1, torch.device("cpu"))
    losses = {"affinity": 1.0, "fd": 20.0, "icl": 0.5, "afd": 0.5, "gd": 5.0}
    whole, told = gradients(world.settings(tmp_path, losses=losses), alone, [1])
    monkeypatch.setattr(parts, "BLOCK", 6 * 2)
    cut, in_parts = gradients(world.settings(tmp_path, losses=losses, micro_batches=pieces), alone, [1])
    assert in_parts[0]["values"] == pytest.approx(told[0]["values"], rel=1e-12)
    for key, gradient in whole.items():
        assert (cut[key] - gradient).abs().max() <= 1e-12 * max(1e-3, float(gradient.abs().max())), key


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements of tensors that are alive: `most` of them at any moment since it was entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                if storage.data_ptr() and storage._cdata not in self._known:
                    size, key = storage.nbytes() // one.element_size(), storage._cdata
                    self._known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._freed, key, size)
        self.most = max(self.most, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize("name", [*LOSSES, "clip-kd"])
def test_no_more_than_twenty_blocks_are_held(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With two teachers, of any loss and of a sum of them: in 32 parts less than one whole B x B matrix."""
    size, width = 512, 1
    monkeypatch.setattr(parts, "BLOCK", size * size // 32)
    total = WeightedSum({one: LOSSES[one](LossShape(width, (width, width))) for one in SUMS[name]}).double()
    ours, said = student(size, width), targets(size, (width, width))
    with Alive() as alive:
        value, _ = total({"txt": ours}, said, SUMS[name])
        value.backward()
    assert alive.most < 20 * size * size // 32 < size * size
    if name != "fd":
        assert alive.most > 4 * size * size // 32
