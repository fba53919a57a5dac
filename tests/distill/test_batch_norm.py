"""Batch norms see the whole batch: beside torch's own of an undivided one; `test_ranks.py` has several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from distill.training.batch_norm import WholeBatchNorms
from distill.training.ranks import Ranks
from distill.training.run import Run
from shards import UserError
from tests.distill.ranks_program import gradients

ALONE = Ranks(0, 1, torch.device("cpu"))
RESNET: dict[str, Any] = {"vision_layers": [1, 1, 1, 1], "width": 16}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "one dimension":
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.BatchNorm1d(6, momentum=None), nn.ReLU(inplace=True))
    if name == "without weights":
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    return timm.create_model(name, num_classes=5)


@pytest.mark.parametrize(
    "name", ["one dimension", "without weights", "resnet18", "mobilenetv3_small_050", "efficientnet_b0"]
)
def test_a_forward_and_its_gradient_are_torchs(name: str) -> None:
    """In float64: values, gradients by weights and pixels, and what is remembered."""
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found: list[dict[str, Tensor]] = []
    for whole in (False, True):
        model = make(name).double().train()
        model(pixels)  # Lazy ones are made; the second batch finds something remembered.
        norms, given = WholeBatchNorms(model, ALONE), pixels.clone().requires_grad_()
        if whole:
            with norms.measuring():
                out = model(given)
        else:
            out = model(given)
        (out * torch.arange(out.numel(), dtype=torch.float64).view_as(out).sin()).sum().backward()
        assert norms.any
        assert given.grad is not None
        gradients = {f"grad/{name}": value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append({"out": out.detach(), "pixels": given.grad, **dict(model.named_buffers()), **gradients})
        model.eval()(pixels)
    assert found[0].keys() == found[1].keys()
    largest = max(float(value.abs().max()) for name, value in found[0].items() if name.startswith("grad"))
    for key, value in found[0].items():
        assert torch.allclose(found[1][key].double(), value.double(), rtol=1e-9, atol=1e-12 * max(1, largest)), key


@pytest.mark.parametrize("pieces", [2, 3])
def test_micro_batches_have_the_values_of_the_whole(
    world: Any, tmp_path: Path, save_student: Callable[..., str], pieces: int
) -> None:
    """Loss, terms and running statistics to 1e-12; of gradients only two means are a piece's."""
    student = save_student(tmp_path / "student.json", **RESNET)
    losses = {"affinity": 1.0, "fd": 9.0}
    whole, told = gradients(world.settings(tmp_path, student=student, losses=losses), ALONE, [1, 2])
    settings = world.settings(tmp_path, student=student, losses=losses, micro_batches=pieces)
    cut, in_pieces = gradients(settings, ALONE, [1, 2])
    assert in_pieces[0]["values"] == pytest.approx(told[0]["values"], rel=1e-12)
    for key, value in whole.items():
        if key.startswith("after/") or "visual" not in key:
            assert (cut[key] - value).abs().max() <= 1e-12 * max(1e-3, float(value.abs().max())), key
    images = [key for key in whole if key.startswith("1/model.visual")]
    one, other = (torch.cat([found[key].flatten() for key in images]) for found in (whole, cut))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.5


def test_the_gradient_in_micro_batches_is_the_one_that_is_described() -> None:
    """Of the last norm's input, worked out: exact but for the two means, which are over each piece."""
    norms = WholeBatchNorms(nn.Sequential(norm := nn.BatchNorm2d(3).double().train()), ALONE)
    x = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad(), norms.measuring():
        norm(x)
    mean, std = x.mean((0, 2, 3), keepdim=True), (x.var((0, 2, 3), keepdim=True, correction=0) + norm.eps).sqrt()
    for piece in (slice(0, None, 2), slice(1, None, 2)):
        given = x[piece].clone().requires_grad_()
        with norms.known():
            out = norm(given)
        normalised = (x[piece] - mean) / std
        assert torch.allclose(out, normalised, atol=1e-12)
        out.backward(slope[piece])
        means = [of.mean((0, 2, 3), keepdim=True) for of in (slope[piece], slope[piece] * normalised)]
        expected = (slope[piece] - means[0] - normalised * means[1]) / std
        assert given.grad is not None
        assert torch.allclose(given.grad, expected, atol=1e-12)
    assert norm.num_batches_tracked == 1


def test_a_locked_tower_remembers_nothing_new(world: Any, tmp_path: Path, save_student: Callable[..., str]) -> None:
    student = save_student(tmp_path / "student.json", **RESNET)
    run = Run(world.settings(tmp_path, student=student, micro_batches=2, lock=("image",)), ALONE)
    before = run.model.visual.bn1.running_mean.clone()
    run.step(run.loader.batch(0))
    assert torch.equal(run.model.visual.bn1.running_mean, before)
    assert not run._gradients._norms.any


def test_dropout_beside_batch_norms_in_micro_batches_is_refused(
    world: Any, tmp_path: Path, save_student: Callable[..., str]
) -> None:
    """Its two passes would not agree."""
    vision = {
        "timm_model_name": "resnet18",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_drop": 0.5,
        "image_size": 32,
    }
    path = save_student(tmp_path / "student.json")
    config = json.loads(Path(path).read_text())
    config.get("model_cfg", config)["vision_cfg"] = {**vision, "timm_drop_path": 0.2}
    Path(path).write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"draws at random.*--micro-batches"):
        Run(world.settings(tmp_path, student=path, micro_batches=2), ALONE)
    Run(world.settings(tmp_path, student=path), ALONE)
