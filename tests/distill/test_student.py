"""What is asked of a student: locked towers, masked patches, given weights, a bias, activations computed again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from clip_models import create_student, load_model
from distill.training.ranks import Ranks
from distill.training.run import Run
from distill.training.student import make_student
from distill.training.train import train
from shards import UserError
from tests.distill.ranks_program import gradients

ALONE = Ranks(0, 1, torch.device("cpu"))
RESNET = {"vision_layers": [1, 1, 1, 1], "width": 16}


def weights_of(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "open_clip_model.safetensors")


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("custom_text", [False, True], ids=["plain", "custom text"])
def test_a_locked_tower_stays_to_the_bit_and_the_other_learns(
    world: Any, tmp_path: Path, save_student: Callable[..., str], tower: str, custom_text: bool
) -> None:
    """With batch norm, whose statistics must not move either."""
    student = save_student(tmp_path / "student.json", custom_text=custom_text, **RESNET)
    settings = world.settings(tmp_path / "run", student=student, steps=2, lock=(tower,))
    before = create_student(student, 0)[0].state_dict()
    after = weights_of(train(settings).model)
    assert any(name.endswith("running_mean") for name in after)
    learned = {name for name, value in after.items() if not torch.equal(value, before[name])}
    mine = {name for name in after if name.startswith("visual.") == (tower == "image") and name != "logit_scale"}
    assert not learned & mine
    # The scale, and of the other tower all but what its gradient does not reach.
    assert "logit_scale" in learned
    assert len(learned) > 0.8 * (len(after) - len(mine))


def test_a_locked_tower_stays_in_evaluation_mode(world: Any, tmp_path: Path, save_student: Callable[..., str]) -> None:
    """Also after an evaluation in the run, and its dropout is off."""
    student = save_student(tmp_path / "student.json", **RESNET)
    run = Run(world.settings(tmp_path, student=student, lock=("image",)))
    for _ in range(2):
        assert not any(module.training for module in run.model.visual.modules())
        assert run.model.transformer.training
        run.model.eval()
        run.student.train()


def test_the_tower_sees_its_share_of_the_patches(world: Any, tmp_path: Path) -> None:
    """MFD's: 25 % of 16 patches, and the class token; the teacher, and evaluation, see them all."""
    run = Run(world.settings(tmp_path, patch_mask=0.75))
    lengths: list[int] = []
    run.model.visual.transformer.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    images = run.loader.batch(0).images
    run.student(images, {})
    run.student.eval()
    run.student(images, {})
    assert lengths == [1 + 4, 1 + 16]


def test_which_patches_are_seen_differs_between_samples_and_steps(world: Any, tmp_path: Path) -> None:
    run = Run(world.settings(tmp_path, patch_mask=0.75))
    images = run.loader.batch(0).images[:1].expand(6, -1, -1, -1).contiguous()
    with torch.no_grad():
        rows = run.student(images, {})["image"]
    assert len({tuple(row.tolist()) for row in rows}) > 3


def test_what_cannot_be_masked_or_computed_again_is_refused(
    world: Any, tmp_path: Path, save_student: Callable[..., str]
) -> None:
    student = save_student(tmp_path / "student.json", **RESNET)
    with pytest.raises(UserError, match=r"cannot be masked: its image tower is a ModifiedResNet.*Use a ViT"):
        make_student(world.settings(tmp_path, student=student, patch_mask=0.5))
    with pytest.raises(UserError, match=r"cannot be recomputed: its batch statistics.*--micro-batches"):
        make_student(world.settings(tmp_path, student=student, checkpoint_activations=True))


def test_activations_computed_again_give_the_same_gradients(
    world: Any, tmp_path: Path, save_student: Callable[..., str]
) -> None:
    """Masks too are drawn as before."""
    student = save_student(tmp_path / "student.json", layers=2)
    changes: dict[str, Any] = {"student": student, "losses": {"affinity": 1.0, "fd": 10.0}, "patch_mask": 0.5}
    kept, _ = gradients(world.settings(tmp_path, **changes), ALONE, [0])
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    settings = world.settings(tmp_path, checkpoint_activations=True, **changes)
    again, _ = gradients(settings, ALONE, [0])
    assert again.keys() == kept.keys()
    for key, gradient in kept.items():
        assert (again[key] - gradient).abs().max() <= 1e-12 * max(1e-3, float(gradient.abs().max())), key
    run = Run(settings)
    run.model.visual.transformer.resblocks[0].register_forward_pre_hook(count)
    run.step(run.loader.batch(0))
    assert forwards == 2, "nothing was computed again"


def test_a_run_starts_from_given_weights(world: Any, tmp_path: Path, save_student: Callable[..., str]) -> None:
    made = train(world.settings(tmp_path / "made", steps=2)).model
    given = weights_of(made)
    run = Run(world.settings(tmp_path, seed=7, initial=made))
    assert all(torch.equal(value, given[name]) for name, value in run.model.state_dict().items())
    assert "logit_scale" in {row.student for row in run.inherited}
    # A pinned scale is not the one that was inherited, and nobody says so.
    pinned, _, rows = make_student(world.settings(tmp_path, initial=made, student_scale=50.0))
    assert math.exp(pinned.logit_scale) == pytest.approx(50)
    assert "logit_scale" not in {row.student for row in rows}
    # A tower alone takes its part.
    image = make_student(world.settings(tmp_path, cache=(), initial=made))[0].visual.state_dict()
    assert all(torch.equal(value, given[f"visual.{name}"]) for name, value in image.items())

    wide = save_student(tmp_path / "wide.json", width=48)
    with pytest.raises(
        UserError,
        match=r"made/model: its visual\.\w+ is \(32,.*\), the student's \(48,.*wider teacher",
    ):
        make_student(world.settings(tmp_path, student=wide, initial=made))
    deep = save_student(tmp_path / "deep.json", layers=2)
    with pytest.raises(UserError, match=r"image tower has 1 layers, of the student's 2"):
        make_student(world.settings(tmp_path, student=deep, initial=made))


def test_a_sigmoid_loss_gives_the_student_a_bias_that_is_learned_and_saved(world: Any, tmp_path: Path) -> None:
    """Scale and bias begin as SigLIP's, 10 and -10."""
    settings = world.settings(tmp_path / "run", steps=3, losses={"sigmoid": 1}, optimiser={"warmup": 0, "lr": 1e-2})
    model, _, _ = make_student(settings)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(10)
    assert float(model.logit_bias.detach()) == -10
    result = train(settings)
    saved = float(weights_of(result.model)["logit_bias"])
    # Adam moves by at most about the learning rate a step; nothing is decayed.
    assert 0 < abs(saved + 10) < 3.5e-2
    loaded = load_model(result.model)
    assert float(loaded.model.logit_bias.detach()) == saved
    cfg = json.loads((Path(result.model) / "open_clip_config.json").read_text())["model_cfg"]
    assert cfg["init_logit_bias"] == -10


def test_without_a_sigmoid_loss_there_is_no_bias(world: Any, tmp_path: Path) -> None:
    model, config, _ = make_student(world.settings(tmp_path))
    assert model.logit_bias is None
    assert "init_logit_bias" not in config["model_cfg"]
    assert float(Run(world.settings(tmp_path)).student.scalars()["logit_bias"]) == 0


def test_a_student_without_a_text_tower_meets_the_teachers_text(world: Any, rich: str, tmp_path: Path) -> None:
    """The contrastive loss of its images and the cached texts, by hand; the folder that comes of it is an image
    tower's."""
    settings = world.settings(
        tmp_path / "run", cache=rich, teachers=("other",), text_tower="cache", steps=2, student_scale=12.0
    )
    run = Run(settings)
    batch = run.loader.batch(0)
    assert batch.tokens == {}
    with torch.no_grad():
        image = F.normalize(run.student(batch.images, {})["image"].double(), dim=-1).numpy()
    logits = 12.0 * image @ batch.targets.teachers["txt"][0].text.double().numpy().T

    def crossed(rows: np.ndarray) -> float:
        return float((np.log(np.exp(rows).sum(axis=1)) - rows.diagonal()).mean())

    loss = run.step(batch)["loss"]
    assert float(loss) == pytest.approx((crossed(logits) + crossed(logits.T)) / 2, rel=1e-5)
    model = load_model(train(settings).model)
    assert not hasattr(model.model, "encode_text")
    with pytest.raises(UserError, match="40 wide cannot stand for the text tower of a student 24 wide"):
        Run(world.settings(tmp_path, cache=rich, teachers=("teach",), text_tower="cache"))
    with pytest.raises(UserError, match="24, 40 wide cannot stand"):
        Run(world.settings(tmp_path, cache=rich, teachers=("other", "teach"), text_tower="cache"))


# A minute of compiling, for a student of one layer.
@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++")
def test_a_compiled_student_takes_the_same_steps(world: Any, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        run = Run(world.settings(tmp_path, compile=compiled))
        losses.append([float(run.step(run.loader.batch(step))["loss"]) for step in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert run.student._compiled_call_impl is not None
    assert math.isfinite(losses[1][-1])


def test_a_student_computes_as_the_model_whose_weights_it_inherits(
    world: Any, tmp_path: Path, save_student: Callable[..., str]
) -> None:
    """Weights trained with QuickGELU, on pixels of another mean, mean nothing elsewhere."""
    from clip_models import create_student, save_model  # noqa: PLC0415

    model, config = create_student(save_student(tmp_path / "teacher.json", layers=2, quick_gelu=True), 3)
    config["preprocess_cfg"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    save_model(model, config, str(tmp_path / "teacher"))
    small = save_student(tmp_path / "small.json")
    run = Run(world.settings(tmp_path, student=small, initial=str(tmp_path / "teacher")))
    assert (run.config["model_cfg"]["quick_gelu"], run.config["preprocess_cfg"]["mean"]) == (True, [0.5, 0.5, 0.5])
    assert type(run.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    batch = run.loader.batch(0)
    with torch.no_grad():
        model.visual.transformer.resblocks = model.visual.transformer.resblocks[:1]
        pixels = (batch.images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        expected = model.eval().encode_image(pixels)
        assert (run.student(batch.images, {})["image"] - expected).abs().max() < 1e-6
