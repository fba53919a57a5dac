"""Any student at another image size and context length, and two stages of one student from one cache (CLIPA, FLIP)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clip_models import create_student, load_model, save_model
from distill.recipe import load_recipe, settings_from
from distill.training.run import Run
from distill.training.train import train
from shards import UserError


def sized(world: Any, out: Path, side: int, context: int, **changes: Any) -> Any:
    return world.settings(out, image_size=side, context_length=context, **changes)


def test_the_student_sees_smaller_images_and_shorter_captions(world: Any, tmp_path: Path) -> None:
    """The same views at the other resolution, the teacher unchanged, captions cut with the end marker last."""
    whole, small = Run(world.settings(tmp_path)), Run(sized(world, tmp_path, 16, 5))
    one, other = whole.loader.batch(1), small.loader.batch(1)
    assert (one.images.shape, other.images.shape) == ((6, 32, 32, 3), (6, 16, 16, 3))
    # The views are crops of noise: their means over quarters are what is left of them at any size.
    means = [F.adaptive_avg_pool2d(batch.images.permute(0, 3, 1, 2).float(), 2) for batch in (one, other)]
    assert float((means[0] - means[1]).abs().mean()) < 6
    assert torch.equal(one.targets.teachers["txt"][0].image, other.targets.teachers["txt"][0].image)
    long, short = one.tokens["txt"], other.tokens["txt"]
    assert short.shape == (6, 5)
    end = open_clip.get_tokenizer("ViT-B-32").eot_token_id
    for full, cut in zip(long, short, strict=True):
        length = int(full.argmax()) + 1
        expected = [*full[: min(4, length - 1)].tolist(), end]
        assert cut.tolist() == expected + [0] * (5 - len(expected))
    assert small.config["preprocess_cfg"]["size"] == 16
    assert small.model.visual.positional_embedding.shape[0] == 1 + (16 // 8) ** 2
    small.step(other)


def test_a_second_stage_goes_on_full_size_from_the_first_ones_weights(world: Any, tmp_path: Path) -> None:
    first = train(sized(world, tmp_path / "first", 16, 5, steps=2)).model
    small = load_model(first)
    assert small.preprocess(Image.new("RGB", (40, 30))).shape == (3, 16, 16)
    run = Run(world.settings(tmp_path, initial=first))
    assert run.loader.batch(0).images.shape[1] == 32
    ours, theirs = run.model.state_dict(), small.model.state_dict()
    for name, value in theirs.items():
        if "positional_embedding" not in name and name != "logit_scale":
            assert torch.equal(ours[name], value), name
    grid = theirs["visual.positional_embedding"][1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True, align_corners=False).flatten(2)[0].T
    assert torch.allclose(ours["visual.positional_embedding"][1:], wanted)
    assert torch.equal(ours["visual.positional_embedding"][0], theirs["visual.positional_embedding"][0])
    texts = theirs["positional_embedding"].numpy()
    count = len(ours["positional_embedding"])
    at = np.clip((np.arange(count) + 0.5) * 5 / count - 0.5, 0, 4)
    for column in range(texts.shape[1]):
        mean = np.interp(at, np.arange(5), texts[:, column])
        np.testing.assert_allclose(ours["positional_embedding"][:, column].numpy(), mean, atol=1e-6)
    # That very model at another size needs no more than its folder.
    assert Run(sized(world, tmp_path, 32, 5, student=first, initial=first)).config["preprocess_cfg"]["size"] == 32


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_vit", 96),  # positions of its own size
        ("resnet18", 40),
        ("swin_tiny_patch4_window7_224", 112),
    ],
)
def test_towers_of_timm_take_other_sizes_and_are_saved_with_them(tmp_path: Path, name: str, side: int) -> None:
    path = tmp_path / "student.json"
    vision = f'{{"timm_model_name": "{name}", "image_size": 160}}'
    path.write_text(f'{{"embed_dim": 8, "vision_cfg": {vision}, "text_cfg": {{"width": 16, "heads": 2, "layers": 1}}}}')
    model, config = create_student(str(path), 0, image_size=side)
    assert config["model_cfg"]["vision_cfg"]["image_size"] == config["preprocess_cfg"]["size"] == side
    assert model.training
    save_model(model, config, str(tmp_path / "model"))
    loaded = load_model(str(tmp_path / "model"))
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model.encode_image(pixels), model.eval().encode_image(pixels))


@pytest.mark.parametrize(
    ("changes", "side", "told"),
    [
        ({}, 36, "--image-size 36.*patches of 8 pixels do not fill 36"),
        ({"vision_layers": [1, 1, 1, 1], "width": 16}, 48, "patches of 32 pixels do not fill 48"),
        ("clip-mixer-4M", 112, "takes no images of 112 pixels"),
    ],
)
def test_sizes_that_a_student_cannot_see_are_refused(
    tmp_path: Path, save_student: Callable[..., str], changes: Any, side: int, told: str
) -> None:
    student = changes if isinstance(changes, str) else save_student(tmp_path / "student.json", **changes)
    with pytest.raises(UserError, match=told):
        create_student(student, 0, ("image",), image_size=side)


def test_the_recipes_are_two_stages_of_one_student() -> None:
    given: dict[str, Any] = {"shards": ("s",), "cache": ("c",), "out": "o"}
    small, full, masked, unmasked = (
        settings_from(load_recipe(name), **given) for name in ("clipa", "clipa-full", "flip", "flip-full")
    )
    assert small.student == full.student == masked.student == unmasked.student
    assert (small.image_size, small.context_length) == (112, 16)
    assert (full.image_size, full.context_length) == (224, 77)
    assert (masked.patch_mask, unmasked.patch_mask) == (0.5, 0)
    for first, second in ((small, full), (masked, unmasked)):
        assert second.optimiser.lr < first.optimiser.lr
        assert (second.epochs or 0) < (first.epochs or 0) / 10
