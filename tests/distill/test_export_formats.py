"""Exports beside open_clip's and transformers' own: loaded here by their libraries alone, whatever the model is."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file
from torch import Tensor

import distill.export.encoders
from clip_models import LoadedModel, Tower, create_student, load_model, tokenizer_for
from distill.export import export_onnx, export_open_clip, export_safetensors, export_torchscript, export_transformers
from shards.errors import UserError

BOTH: tuple[Tower, ...] = ("image", "text")
CAPTIONS = ["a cat", "Two DOGS & 3 foxes' tails", "", "long " * 60, "crème brûlée 🍮", "a", "b"]

Make = Callable[..., LoadedModel]

TIMM = {
    "timm_model_name": "resnet10t",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "image_size": 32,
}
PRUNED = {
    "vision": {
        "full": {"width": 64, "heads": 4, "mlp": 256},
        "layers": [{"heads": 3, "mlp": 100}, {"heads": 0, "mlp": 7}],
    },
    "text": {"full": {"width": 48, "heads": 3, "mlp": 192}, "layers": [{"heads": 1, "mlp": 5}, {"heads": 2, "mlp": 0}]},
}

MODELS: dict[str, dict[str, Any]] = {
    "vit": {},
    "siglip": {"custom_text": True, "init_logit_bias": -10},
    "resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}},
    "timm": {"vision_cfg": TIMM},
    "image tower alone": {"towers": ("image",)},
    "pruned": {"clipstill_pruned": PRUNED},
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(name)`: a tiny model of `MODELS` whose weights are large enough to show in the embeddings."""

    def made(name: str) -> LoadedModel:
        changes = dict(MODELS[name])
        towers = changes.pop("towers", BOTH)
        config: dict[str, Any] = {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
            **changes,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        model, full = create_student(str(tmp_path / "config.json"), 2, towers)
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for key, tensor in model.named_parameters():
                if not key.startswith("logit_"):
                    tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
            model.logit_scale.fill_(3.3)
        preprocess = image_transform_v2(PreprocessCfg(**full["preprocess_cfg"]), is_train=False)
        return LoadedModel("tiny", model.eval(), full, preprocess, tokenizer_for(full))

    return made


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def embeddings(loaded: LoadedModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of unit norm, normalised here; texts of a model without text tower are those of some other."""
    found = [loaded.model.encode_image(images)]
    if hasattr(loaded.model, "encode_text"):
        found.append(loaded.model.encode_text(loaded.tokenizer(CAPTIONS)))
    else:
        found.append(torch.randn(len(CAPTIONS), 24, generator=torch.Generator().manual_seed(4)))
    images, texts = (rows / rows.norm(dim=1, keepdim=True) for rows in found)
    return images, texts


def close(there: Any, here: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(torch.as_tensor(there), here, atol=atol, rtol=0)


def jit_load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.load(str(path)).eval()


@pytest.mark.parametrize("name", MODELS)
def test_torchscript_has_the_interface_of_teensy_tiny_clip(tmp_path: Path, make: Make, name: str) -> None:
    loaded = make(name)
    measured = export_torchscript(loaded, str(tmp_path / "out"))
    assert max(measured.values()) < 1e-3
    model = jit_load(tmp_path / "out" / "model.pt")
    bias = -10 if name == "siglip" else 0
    with torch.no_grad():
        for count in (1, 3, 7):
            images, texts = embeddings(loaded, pixels(count))
            close(model.image_encoder(pixels(count)), images)
            expected = float(np.exp(3.3)) * images @ texts.T + bias
            close(model(pixels(count), texts), expected, 1e-3)
            # Embeddings from elsewhere need not be of unit norm, nor one text be a batch.
            close(model(pixels(count), texts[0] * 7), expected[:, :1], 1e-3)
        if name == "image tower alone":
            with pytest.raises(torch.jit.Error, match="no text tower"):
                model(pixels(1), torch.ones(2, 32, dtype=torch.int64))
        else:
            tokens = loaded.tokenizer(CAPTIONS)
            close(model.text_encoder(tokens[:1]), texts[:1])
            close(model(pixels(7), tokens), expected, 1e-3)


def test_a_torchscript_tower_does_not_carry_the_other_along(tmp_path: Path, make: Make) -> None:
    loaded = make("vit")
    export_torchscript(loaded, str(tmp_path / "out"))
    model = jit_load(tmp_path / "out" / "model.pt")
    visual = sum(value.numel() for value in loaded.model.visual.state_dict().values())
    whole = sum(value.numel() for value in loaded.model.parameters())
    assert sum(value.numel() for value in model.image_encoder.state_dict().values()) == visual
    assert sum(value.numel() for value in model.parameters()) == whole - 1


@pytest.mark.parametrize("name", MODELS)
def test_onnx_computes_the_same_for_any_batch(tmp_path: Path, make: Make, name: str) -> None:
    loaded = make(name)
    export_onnx(loaded, str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["logit_scale"] == pytest.approx(np.exp(3.3))
    assert config["logit_bias"] == (-10 if name == "siglip" else 0)
    assert config["preprocess_cfg"] == loaded.config["preprocess_cfg"]
    image_encoder = onnxruntime.InferenceSession(tmp_path / "out" / "image_encoder.onnx")
    for count in (1, 3, 7):
        images, texts = embeddings(loaded, pixels(count))
        close(image_encoder.run(["image_embeddings"], {"images": pixels(count).numpy()})[0], images)
    if name == "image tower alone":
        assert not (tmp_path / "out" / "text_encoder.onnx").exists()
        return
    text_encoder = onnxruntime.InferenceSession(tmp_path / "out" / "text_encoder.onnx")
    tokens = loaded.tokenizer(CAPTIONS).numpy()
    for count in (1, 3, 7):
        close(text_encoder.run(["text_embeddings"], {"tokens": tokens[:count]})[0], texts[:count])


@pytest.mark.parametrize("name", MODELS)
def test_safetensors_holds_the_tensors_and_loads_again(tmp_path: Path, make: Make, name: str) -> None:
    loaded = make(name)
    measured = export_safetensors(loaded, str(tmp_path / "out"))
    assert set(measured.values()) == {0}
    assert ("text_embedding" in measured) == (name != "image tower alone")
    tensors = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    own = loaded.model.state_dict()
    assert set(tensors) == set(own)
    assert all(torch.equal(value, own[key]) for key, value in tensors.items())
    again = load_model(str(tmp_path / "out"))
    for here, there in zip(embeddings(loaded, pixels(3)), embeddings(again, pixels(3)), strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("export", [export_open_clip, export_transformers])
@pytest.mark.parametrize(("name", "says"), [("image tower alone", "no text tower"), ("pruned", "layers differ")])
def test_what_a_format_cannot_hold_goes_to_those_that_can(
    tmp_path: Path, make: Make, export: Any, name: str, says: str
) -> None:
    with pytest.raises(UserError, match=rf"cannot.*this model.*{says}.*torchscript, onnx or safetensors"):
        export(make(name), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_open_clip, export_transformers])
@pytest.mark.parametrize("name", ["clip_mixer_4m", "clip_mixer_5m"])
def test_an_image_tower_that_only_clipstill_registers_goes_to_formats_that_carry_it(
    tmp_path: Path, export: Any, name: str
) -> None:
    """A process that has imported open_clip alone could not build it."""
    vision = {"timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", "image_size": 224}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    with torch.device("meta"):
        model, config = create_student(str(tmp_path / "config.json"), 0)
    loaded = LoadedModel("mixer", model, config, lambda _: torch.empty(0), tokenizer_for(config))
    with pytest.raises(UserError, match=rf"{name}, is Clipstill's own.*Export it as torchscript, onnx or safetensors"):
        export(loaded, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("export", [export_torchscript, export_onnx])
def test_an_export_that_computes_something_else_is_not_published(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, export: Any
) -> None:
    """As if a batch's size had become a constant: right for the batch that was traced, wrong for others."""

    def wrong(self: Any, images: Tensor) -> Tensor:
        rows: Tensor = self.model.encode_image(images, normalize=True)
        return rows + (0.1 if images.shape[0] == 2 else 0.0)

    loaded = make("vit")
    monkeypatch.setattr(distill.export.encoders.ImageEncoder, "forward", wrong)
    with pytest.raises(RuntimeError, match=r"image_embedding by 0\.1"):
        export(loaded, str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_without_the_onnx_packages_it_says_how_to_get_them(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is missing.*clipstill\[onnx\]"):
        export_onnx(make("vit"), str(tmp_path / "out"))


def test_fused_attention_is_back_after_an_export(tmp_path: Path, make: Make) -> None:
    export_torchscript(make("vit"), str(tmp_path / "out"))
    assert torch.backends.mha.get_fastpath_enabled()
