"""Exports are loaded here by the other library alone and compared with the model they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

import distill.export.to_transformers
from clip_models import LoadedModel, create_student, load_model, save_model, tokenizer_for
from distill.export import FORMATS, export_open_clip, export_transformers
from shards.errors import UserError

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 3},
}
CAPTIONS = ["a cat", "Two DOGS & 3 foxes' tails", "", "long " * 60, "crème brûlée 🍮"]


def make(folder: Path, **changes: Any) -> LoadedModel:
    """A tiny model whose weights are large enough that every part of it shows in the embeddings."""
    config = {
        **TINY,
        **{key: value for key, value in changes.items() if not isinstance(value, dict)},
        **{key: {**TINY[key], **value} for key, value in changes.items() if isinstance(value, dict)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    model, full = create_student(str(folder / "config.json"), seed=2)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name != "logit_scale":
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.5 if tensor.ndim < 2 else 0.15)
        model.logit_scale.fill_(3.3)
    preprocess = image_transform_v2(PreprocessCfg(**full["preprocess_cfg"]), is_train=False)
    return LoadedModel("tiny", model.eval(), full, preprocess, tokenizer_for(full))


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


PICTURES = [(96, 32), (32, 96), (120, 90), (64, 64), (50, 47)]


@torch.no_grad()
def expected(loaded: LoadedModel) -> tuple[Tensor, Tensor, Tensor]:
    pixels = torch.stack([loaded.preprocess(picture(*size)) for size in PICTURES])
    images = loaded.model.encode_image(pixels, normalize=True)
    texts = loaded.model.encode_text(loaded.tokenizer(CAPTIONS), normalize=True)
    return images, texts, loaded.model.logit_scale.exp() * images @ texts.T


@torch.no_grad()
def from_transformers(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    processor = CLIPProcessor.from_pretrained(folder, backend="pil")
    batch = processor(
        text=CAPTIONS,
        images=[picture(*size) for size in PICTURES],
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    out = CLIPModel.from_pretrained(folder).eval()(**batch)
    return out.image_embeds, out.text_embeds, out.logits_per_image


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick gelu": {"quick_gelu": True},
    "own epsilons, activation and mlp widths": {
        "vision_cfg": {"norm_kwargs": {"eps": 0.01}, "act_kwargs": {"approximate": "tanh"}, "mlp_ratio": 2.0},
        "text_cfg": {"norm_kwargs": {"eps": 0.03}, "mlp_ratio": 3.0},
    },
    "pooling at the eos id, patch dropout": {
        "vision_cfg": {"patch_dropout": 0.5},
        "text_cfg": {"pool_type": "eos", "eos_id": 49407},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_computes_the_same(tmp_path: Path, variant: str) -> None:
    loaded = make(tmp_path, **VARIANTS[variant])
    measured = export_transformers(loaded, str(tmp_path / "out"))
    for here, there in zip(expected(loaded), from_transformers(tmp_path / "out"), strict=True):
        torch.testing.assert_close(there, here, atol=1e-4, rtol=0)
    assert measured["image_embedding"] < 1e-5
    assert measured["text_embedding"] < 1e-5
    assert 0 < measured["captions_tokenised_differently"] < measured["captions"]
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


def test_the_exported_tokenizer_is_open_clips(tmp_path: Path) -> None:
    loaded = make(tmp_path)
    export_transformers(loaded, str(tmp_path / "out"))
    tokenizer = CLIPProcessor.from_pretrained(tmp_path / "out").tokenizer
    assert tokenizer.model_max_length == 32
    for caption in [
        *CAPTIONS,
        "don't DON'T they'Re",
        "Ünïcödé\u00a0ÅÉ",
        "a\tb\n c",
        "2024 日本語 😀👍🏽",
        "½ ﷽ x_y!!!",
    ]:
        own = loaded.tokenizer([caption])[0].tolist()
        ids = tokenizer(caption, truncation=True).input_ids
        assert ids == own[: own.index(49407) + 1], caption
    # What the cleaning does is the one difference.
    assert tokenizer("Tom &amp; Jerry").input_ids != tokenizer("Tom & Jerry").input_ids


def test_squashing_preprocessing_is_kept(tmp_path: Path) -> None:
    made = make(tmp_path)
    config = made.config["preprocess_cfg"] | {
        "resize_mode": "squash",
        "interpolation": "bilinear",
        "mean": [0.4, 0.5, 0.6],
    }
    save_model(made.model, {**made.config, "preprocess_cfg": config}, str(tmp_path / "squash"))
    loaded = load_model(str(tmp_path / "squash"))
    export_transformers(loaded, str(tmp_path / "out"))
    processor = CLIPProcessor.from_pretrained(tmp_path / "out", backend="pil")
    for size in PICTURES:
        pixels = processor(images=picture(*size), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(pixels, loaded.preprocess(picture(*size)), atol=1e-5, rtol=0)


RESNET = {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64}}
TIMM = {"vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg"}}
SIGLIP = {"custom_text": True, "init_logit_bias": -10}


@pytest.mark.parametrize("name", ["open_clip", "safetensors"])
def test_texts_are_tokenised_without_torch(tmp_path: Path, name: str) -> None:
    """By the library `tokenizers` alone; captions that open_clip cleans first are what it cannot know."""
    loaded = make(tmp_path)
    FORMATS[name](loaded, str(tmp_path / "out"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    captions = ["a photo of a cat", "", "Ein Hündchen, 3 m", "word " * 60]
    assert [one.ids for one in tokenizer.encode_batch(captions)] == loaded.tokenizer(captions).tolist()


@pytest.mark.parametrize("changes", [{}, RESNET, TIMM, SIGLIP], ids=["vit", "resnet", "timm", "siglip"])
def test_open_clip_loads_its_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded = make(tmp_path, **changes)
    measured = export_open_clip(loaded, str(tmp_path / "out"))
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}/out")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}/out")
    theirs = LoadedModel("theirs", model.eval(), {}, preprocess, tokenizer)
    for here, there in zip(expected(loaded), expected(theirs), strict=True):
        assert torch.equal(here, there)
    assert measured == {
        "image_embedding": 0,
        "text_embedding": 0,
        "logits": 0,
        "captions": 12,
        "captions_tokenised_differently": 0,
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"custom_text": True}, "custom one"),
        ({"init_logit_bias": -10}, "logit bias"),
        (RESNET, "ModifiedResNet"),
        (TIMM, "TimmModel"),
        ({"vision_cfg": {"pool_type": "avg"}}, "pools by 'avg'"),
        ({"vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 2}}, "attentional pool"),
        ({"vision_cfg": {"no_ln_pre": True}}, "no_ln_pre"),
        ({"vision_cfg": {"ls_init_value": 0.5}}, "image tower has layer scale"),
        ({"vision_cfg": {"image_size": [32, 48]}}, "not square"),
        ({"vision_cfg": {"qk_norm": True}}, "image tower has custom attention blocks"),
        ({"text_cfg": {"ls_init_value": 0.5}}, "text tower has layer scale"),
        ({"text_cfg": {"no_causal_mask": True}}, "no causal mask"),
        ({"text_cfg": {"pool_type": "last"}}, "pools by 'last'"),
        ({"text_cfg": {"pool_type": "eos"}}, "pools by 'eos'"),
        ({"text_cfg": {"proj_bias": True}}, "projection has a bias"),
        ({"text_cfg": {"vocab_size": 50000}}, "50000 tokens"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, "settings of its own"),
    ],
)
def test_transformers_refuses_what_it_cannot_hold(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    loaded = make(tmp_path, **changes)
    with pytest.raises(UserError, match=f"cannot hold this model.*{says}.*open_clip"):
        export_transformers(loaded, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_layers_that_differ_are_refused(tmp_path: Path) -> None:
    loaded = make(tmp_path)
    loaded.model.transformer.resblocks[1].mlp.c_fc = nn.Linear(48, 100)
    loaded.model.transformer.resblocks[1].mlp.c_proj = nn.Linear(100, 48)
    with pytest.raises(UserError, match="layers of its text tower differ"):
        export_transformers(loaded, str(tmp_path / "out"))


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.is_installed])
def test_a_folder_in_use_is_left_alone(tmp_path: Path, name: str) -> None:
    loaded = make(tmp_path)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"something already.*another folder"):
        FORMATS[name](loaded, str(folder))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    FORMATS[name](loaded, str(folder))
    assert (folder / "README.md").exists()


def test_a_wrong_export_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    right = distill.export.to_transformers._transformers_weights

    def wrong(model: Any) -> dict[str, Tensor]:
        weights = right(model)
        weights["vision_model.encoder.layers.1.self_attn.q_proj.bias"] += 0.5
        return weights

    monkeypatch.setattr(distill.export.to_transformers, "_transformers_weights", wrong)
    with pytest.raises(RuntimeError, match="image_embedding by"):
        export_transformers(loaded, str(tmp_path / "out"))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.is_installed])
def test_a_diverged_model_is_refused(tmp_path: Path, name: str) -> None:
    loaded = make(tmp_path)
    with torch.no_grad():
        loaded.model.visual.proj[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        FORMATS[name](loaded, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_half_precision_is_exported_as_float32_and_left_as_it_was(tmp_path: Path) -> None:
    loaded = make(tmp_path)
    loaded.model.half()
    export_transformers(loaded, str(tmp_path / "out"))
    assert loaded.model.visual.proj.dtype == torch.float16
    assert CLIPModel.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_the_open_clip_folder_names_the_end_token(tmp_path: Path) -> None:
    """open_clip 4 asks for it; one that is there already stays."""
    for number, (text_cfg, wanted) in enumerate([({}, 49407), ({"pool_type": "eos", "eos_id": 49406}, 49406)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        loaded = make(folder, text_cfg=text_cfg)
        export_open_clip(loaded, str(folder / "out"))
        config = json.loads((folder / "out" / "open_clip_config.json").read_text())
        assert config["model_cfg"]["text_cfg"]["eos_id"] == wanted
        assert load_model(str(folder / "out")).model.text_eos_id == wanted
