"""The published students: their sizes are those that their papers print, and they save and load like any model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import nn

from clip_models import ImageTower, create_student, load_model, published, save_model, student_names
from clip_models.spec import refuse_no_student
from distill.recipe import list_recipes
from shards.errors import UserError

# Parameters in millions as published: image tower with its projection, text tower without its token embedding. Where
# nobody printed the text tower's, it is None.
PUBLISHED: dict[str, tuple[float, float | None]] = {
    "TinyCLIP-ViT-39M-16-Text-19M": (38.59, 19.22),
    "TinyCLIP-ViT-8M-16-Text-3M": (8.28, 2.52),
    "TinyCLIP-ResNet-30M-Text-29M": (29.58, 28.94),
    "TinyCLIP-ResNet-19M-Text-19M": (18.60, 19.48),
    "TinyCLIP-ViT-61M-32-Text-29M": (61.41, 28.67),
    "TinyCLIP-ViT-40M-32-Text-19M": (39.69, 19.22),
    "ViT-T-16": (5.62, 21.52),
    "mobilevit_s": (5.27, 21.52),
    "swin_tiny_patch4_window7_224": (27.91, 21.52),
    "mobilenetv3_small_100": (2.04, 21.52),
    "efficientnet_b0": (4.66, 21.52),
    "resnet18": (11.44, 21.52),
    "RN50": (38.32, None),
    "RN101": (56.26, None),
    "clip-mixer-4M": (4.03, None),
    "clip-mixer-5M": (5.18, None),
}


def millions(model: nn.Module) -> dict[str, float]:
    """Parameters by tower, to the two decimals that are printed."""
    counts = {"image": 0, "text": 0}
    for name, parameter in model.named_parameters():
        if name not in {"logit_scale", "token_embedding.weight"}:
            counts["image" if name.startswith("visual.") else "text"] += parameter.numel()
    return {tower: round(count / 1e6, 2) for tower, count in counts.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    image, text = PUBLISHED[name]
    # No memory is spent on numbers that are only counted; the mixers' text tower is not theirs.
    with torch.device("meta"):
        model, _ = create_student(name, 0, ("image",) if name.startswith("clip-mixer") else ("image", "text"))
    assert millions(model)["image"] == pytest.approx(image, abs=0.0051)
    assert text is None or millions(model)["text"] == text


def test_every_student_that_comes_with_the_package_is_listed_and_checked() -> None:
    assert set(student_names()) == set(PUBLISHED) - {"RN50", "RN101"}
    assert set(student_names()) <= set(open_clip.list_models())


def test_architectures_are_known_without_open_clip_and_a_programs_own_with_it(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "from clip_models.spec import architectures\n"
        "names = sorted(architectures())\n"
        "assert not {'torch', 'open_clip'} & set(sys.modules)\n"
        "print(json.dumps(names))\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == sorted(open_clip.list_models())
    # As a program of its own may do; open_clip forgets no name again, so in another process.
    (tmp_path / "my-own.json").write_text(json.dumps(open_clip.get_model_config("ViT-B-32")))
    program = (
        "import sys, open_clip\n"
        "from clip_models.spec import refuse_absent\n"
        "open_clip.add_model_config(sys.argv[1])\n"
        "refuse_absent('my-own:tag')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(tmp_path)], check=True)


def test_a_folder_that_is_called_as_a_student_is_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ViT-T-16").mkdir()
    monkeypatch.chdir(tmp_path)
    refuse_no_student("ViT-T-16")
    (tmp_path / "ViT-T-17").mkdir()
    with pytest.raises(UserError, match=r"ViT-T-17/open_clip_config\.json: there is no such file"):
        refuse_no_student("ViT-T-17")


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "ViT-T-16"])
def test_a_student_embeds_both_sides_at_the_width_it_says(name: str) -> None:
    model, config = create_student(name, 0)
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.zeros(1, 3, 224, 224))
        text = model.encode_text(open_clip.get_tokenizer("")(["a cat"]))
    assert image.shape == text.shape == (1, config["model_cfg"]["embed_dim"])


def test_the_mixer_mixes_patches_and_channels_as_the_reference_sizes_them() -> None:
    """The reference's hidden widths: 4 x 196 patches, and half of 512 channels."""
    model, _ = create_student("clip-mixer-4M", 0, ("image",))
    blocks: Any = model.visual.trunk.blocks
    shapes = [
        (tuple(block.mlp_tokens.fc1.weight.shape), tuple(block.mlp_channels.fc1.weight.shape)) for block in blocks
    ]
    assert shapes == [((784, 196), (256, 512))] * 6
    assert model.visual.head.proj.weight.shape == (384, 512)
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}


def test_a_student_without_text_tower_is_saved_and_loaded_as_one(tmp_path: Path) -> None:
    model, config = create_student("clip-mixer-4M", 3, ("image",))
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
    save_model(model, config, str(tmp_path / "model"))
    loaded = load_model(str(tmp_path / "model"))
    assert isinstance(loaded.model, ImageTower)
    assert not loaded.model.training
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = loaded.model.encode_image(pixels, normalize=True)
        wanted = model.eval().encode_image(pixels)
    assert torch.equal(got, wanted / wanted.norm(dim=1, keepdim=True))
    assert loaded.model.logit_scale == 4.0
    with pytest.raises(UserError, match="no text tower"):
        loaded.tokenizer(["a cat"])


def test_an_image_tower_is_its_models_own_but_for_the_text(tmp_path: Path) -> None:
    """Same tensors under the same names: a whole model can start from it, and it from a whole one."""
    whole, _ = create_student("ViT-T-16", 0)
    alone, config = create_student("ViT-T-16", 0, ("image",))
    names = {name for name in whole.state_dict() if name.startswith("visual.")} | {"logit_scale"}
    assert set(alone.state_dict()) == names
    assert alone.logit_scale == whole.logit_scale
    alone.load_state_dict({name: whole.state_dict()[name] for name in names})
    pixels = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(alone.eval().encode_image(pixels), whole.eval().encode_image(pixels))
    save_model(alone, config, str(tmp_path / "model"))
    assert load_model(str(tmp_path / "model")).config["towers"] == ["image"]


def test_an_unknown_name_points_to_the_closest_student() -> None:
    with pytest.raises(UserError, match="TinyCLIP-ViT-40M-32-Text-19M"):
        create_student("TinyCLIP-ViT-40M-Text-19M", 0)


@pytest.mark.parametrize("name", ["regnetz_005", "ghostnet_100", "vit_dwee_patch16_reg1_gap_256"])
def test_any_image_model_of_timms_makes_a_student(name: str) -> None:
    """A classifier alone, one with layers of its own before it, and a transformer that is not 224 wide."""
    model, config = create_student(f"timm/{name}", 0)
    size = timm.get_pretrained_cfg(name).input_size[-1]
    assert config["preprocess_cfg"]["size"] == config["model_cfg"]["vision_cfg"]["image_size"] == size
    with torch.no_grad():
        assert model.eval().encode_image(torch.zeros(1, 3, size, size)).shape == (1, 512)
    assert millions(model)["text"] == 21.52


def test_a_timm_student_is_clip_kds() -> None:
    for name in ("resnet18", "mobilenetv3_small_100"):
        mine, published = create_student(f"timm/{name}", 0), create_student(name, 0)
        assert mine[1] == published[1]
        assert {key: value.shape for key, value in mine[0].state_dict().items()} == {
            key: value.shape for key, value in published[0].state_dict().items()
        }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm/resnet19", "timm has no model 'resnet19'. The closest are timm/resnet"),
        ("vit_tiny_patch16_224", "no architecture 'vit_tiny_patch16_224'.*timm/vit_tiny_patch16_224 if timm has"),
        ("TinyCLIP-auto-ViT-63M-32-Text-31M", "Run the recipe tinyclip-auto-vit-63m-32-text-31m-prune"),
    ],
)
def test_what_no_student_can_be_made_of_names_what_can(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        create_student(name, 0)


def test_the_recipes_that_messages_name_exist() -> None:
    pruned = [row.name.lower() for row in published.PUBLISHED if row.role == "pruned"]
    assert len(pruned) == 3
    assert {f"{name}-prune" for name in pruned} <= {recipe.name for recipe in list_recipes()}
