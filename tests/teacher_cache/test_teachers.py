"""Teachers in open_clip's formats, and what every kind has in common; the libraries themselves are the reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from clip_models import LoadedModel, load_model
from shards import UserError
from teacher_cache.teachers import Forward, Teacher, load_teacher, weights_hash

TEXTS = ["a red cat", "Two DOGS, near the river!", "", "old house " * 30]


def pixels(side: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def unit(embeddings: Tensor) -> np.ndarray:
    rows = embeddings.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def edit(folder: str, change: Callable[[dict[str, Any]], None]) -> None:
    path = Path(folder) / "open_clip_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def save_siglip(save_teacher: Any, folder: Path) -> str:
    """A tiny SigLIP: sigmoid bias, mean and deviation of a half, squashed images, a tokenizer of its own beside it."""
    spec = save_teacher(folder, scale=117.0, init_logit_bias=-16.5, init_logit_scale=2.0, custom_text=True)
    words = ["<pad>", "<unk>", "a", "red", "cat", "two", "dogs", "near", "the", "river", "old", "house"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(spec)

    def change(config: dict[str, Any]) -> None:
        config["preprocess_cfg"] |= {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
        config["preprocess_cfg"]["interpolation"] = "bilinear"
        text = {"hf_tokenizer_name": "nobody/nothing", "tokenizer_kwargs": {"clean": "canonicalize"}}
        config["model_cfg"]["text_cfg"] |= {**text, "pool_type": "last", "no_causal_mask": True}

    edit(spec, change)
    return spec


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, save_teacher: Any) -> str:
    return save_teacher(tmp_path_factory.mktemp("clip") / "teacher", layers=2)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory, save_teacher: Any) -> str:
    return save_siglip(save_teacher, tmp_path_factory.mktemp("siglip") / "teacher")


@pytest.mark.parametrize("kind", ["clip", "siglip", "resnet"])
def test_embeddings_are_those_of_open_clip(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, save_teacher: Any
) -> None:
    if kind == "resnet":
        spec = save_teacher(tmp_path / "resnet", image=32, vision_layers=[1, 1, 1, 1], width=16)
    else:
        spec = request.getfixturevalue(kind)
    teacher = load_teacher(spec)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{spec}")
    model.eval()
    images = pixels(teacher.image_size)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images]))
        read = model.encode_text(open_clip.get_tokenizer(f"local-dir:{spec}")(TEXTS))
    got = teacher.embed_images(torch.from_numpy(images)), teacher.embed_texts(TEXTS)
    for ours, theirs in zip(got, (seen, read), strict=True):
        assert ours.dtype == torch.float32
        assert ours.shape == (len(theirs), teacher.embed_dim)
        np.testing.assert_allclose(ours.numpy(), unit(theirs), atol=2e-6)
        np.testing.assert_allclose(ours.norm(dim=1).numpy(), 1, atol=1e-6)


def test_the_facts_of_a_clip_and_of_a_siglip(clip: str, siglip: str) -> None:
    plain, sigmoid = load_teacher(clip), load_teacher(siglip)
    assert (plain.image_size, plain.resize_mode, plain.has_text, plain.embed_dim) == (48, "shortest", True, 40)
    assert plain.logit_scale == pytest.approx(20)
    assert plain.logit_bias is None
    assert plain.interpolation == "bicubic"
    assert (sigmoid.resize_mode, sigmoid.interpolation, sigmoid.logit_bias) == ("squash", "bilinear", -16.5)
    assert sigmoid.logit_scale == pytest.approx(117)
    halves = {"mean": [0.5] * 3, "std": [0.5] * 3}
    how = {"resize_mode": "squash", "interpolation": "bilinear"}
    assert sigmoid.identity["preprocess"] == {"size": 48, **halves, **how}
    assert json.loads(json.dumps(plain.identity)) == plain.identity


def test_weights_by_path_get_the_preprocessing_that_all_tags_of_their_architecture_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_teacher: Any
) -> None:
    folder = Path(save_teacher(tmp_path / "teacher", init_logit_bias=-10))
    model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    tags = {
        name: {"url": "", "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"} for name in ("one", "two")
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-Tiny-12-SigLIP", model_cfg)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-Tiny-12-SigLIP", tags)
    spec = f"ViT-Tiny-12-SigLIP:{folder}/open_clip_model.safetensors"
    chosen = load_teacher(spec).identity["preprocess"]
    assert (chosen["mean"], chosen["resize_mode"]) == ([0.5] * 3, "squash")
    tags["two"]["resize_mode"] = "shortest"
    chosen = load_teacher(spec).identity["preprocess"]
    assert (chosen["mean"], chosen["resize_mode"]) == (list(open_clip.OPENAI_DATASET_MEAN), "shortest")


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_tower_alone_embeds_alike_keeps_the_identity_and_frees_the_other(
    custom_text: bool, tmp_path: Path, save_teacher: Any
) -> None:
    spec = save_teacher(tmp_path / "teacher", custom_text=custom_text)
    both, image, text = (load_teacher(spec, towers=towers) for towers in ("both", "image", "text"))
    images = torch.from_numpy(pixels(48))
    assert torch.equal(image.embed_images(images), both.embed_images(images))
    assert torch.equal(text.embed_texts(TEXTS), both.embed_texts(TEXTS))
    assert image.identity == text.identity == both.identity
    with pytest.raises(UserError, match="loaded without its text tower"):
        image.embed_texts(TEXTS)
    with pytest.raises(UserError, match="loaded without its image tower"):
        text.embed_images(images)
    numbers = [sum(p.numel() for p in teacher._model.parameters()) for teacher in (both, image, text)]
    assert numbers[1] + numbers[2] <= numbers[0] + 1  # the temperature may be in either


def test_the_identity_changes_with_what_decides_the_embeddings_and_with_nothing_else(
    clip: str, siglip: str, tmp_path: Path
) -> None:
    def changed(source: str, change: Callable[[str], None]) -> dict[str, Any]:
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, folder)
        change(str(folder))
        return load_teacher(str(folder)).identity

    def one_weight(folder: str) -> None:
        path = Path(folder) / "open_clip_model.safetensors"
        state = load_file(path)
        state["visual.conv1.weight"].view(-1)[5] += 1e-4
        save_file(state, path)

    def token(folder: str) -> None:
        path = Path(folder) / "tokenizer.json"
        path.write_text(path.read_text().replace('"cat": 4', '"cot": 4'))

    def mean(config: dict[str, Any]) -> None:
        config["preprocess_cfg"]["mean"][1] += 0.01

    def mode(config: dict[str, Any]) -> None:
        config["preprocess_cfg"]["resize_mode"] = "squash"

    def filtered(config: dict[str, Any]) -> None:
        config["preprocess_cfg"]["interpolation"] = "bilinear"

    standing = load_teacher(clip).identity
    assert changed(clip, str) == standing
    for part, change in (
        ("weights", one_weight),
        ("preprocess", lambda folder: edit(folder, mean)),
        ("preprocess", lambda folder: edit(folder, mode)),
        ("preprocess", lambda folder: edit(folder, filtered)),
    ):
        identity = changed(clip, change)
        assert [key for key in standing if identity[key] != standing[key]] == [part]
    other = load_teacher(siglip).identity
    assert [key for key in other if changed(siglip, token)[key] != other[key]] == ["tokenizer"]


def test_the_identity_does_not_depend_on_the_file_the_weights_came_in(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(clip)
    model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-Tiny-12", model_cfg)
    torch.save(load_file(folder / "open_clip_model.safetensors"), tmp_path / "weights.pt")
    specs = [f"ViT-Tiny-12:{tmp_path}/weights.pt", f"ViT-Tiny-12:{folder}/open_clip_model.safetensors"]
    specs.append(f"local-dir:{clip}")
    assert [load_teacher(spec).identity for spec in specs] == [load_teacher(clip).identity] * 3


def test_the_weights_hash_tells_names_shapes_dtypes_and_bytes_apart() -> None:
    base = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    states = [{"a": base}, {"b": base}, {"a": base.reshape(3, 2)}, {"a": base.view(torch.float32)}, {"a": base + 1}]
    assert len({weights_hash(state) for state in states}) == 5
    assert weights_hash({"a": base.T.contiguous().T}) == weights_hash({"a": base})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close_to_float32_and_of_unit_norm(clip: str, precision: Any) -> None:
    exact, rounded = load_teacher(clip), load_teacher(clip, Forward(precision=precision))
    images = torch.from_numpy(pixels(48))
    for call, batch in ((Teacher.embed_images, images), (Teacher.embed_texts, TEXTS)):
        ours, theirs = call(rounded, batch), call(exact, batch)
        assert not torch.equal(ours, theirs)
        assert (ours * theirs).sum(dim=1).min() > 0.999
        np.testing.assert_allclose(ours.norm(dim=1).numpy(), 1, atol=1e-6)


def test_compiled_towers_embed_alike(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def trace(call: Any) -> Any:
        # The graph is captured as ever, and run as it is: generating code for it takes a minute on a small machine.
        compiled.append(call)
        return compile_(call, backend="eager")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    plain, fast = load_teacher(clip), load_teacher(clip, Forward(compile=True))
    images = torch.from_numpy(pixels(48))
    torch.testing.assert_close(fast.embed_images(images), plain.embed_images(images))
    torch.testing.assert_close(fast.embed_texts(TEXTS), plain.embed_texts(TEXTS))
    assert len(compiled) == 2


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache folder of a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_model_of_the_hub_is_that_of_its_folder(hub: Path, clip: str) -> None:
    repository = hub / "models--someone--tiny"
    shutil.copytree(clip, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    teacher, local = load_teacher("hf-hub:someone/tiny"), load_teacher(clip)
    assert teacher.identity == local.identity
    assert torch.equal(teacher.embed_texts(TEXTS), local.embed_texts(TEXTS))


@pytest.mark.parametrize("spec", ["hf-hub:no/body", "transformers:no/body", "sentence-transformers:nobody"])
def test_without_a_network_the_hub_is_one_clear_error(hub: Path, spec: str) -> None:
    if spec.startswith("sentence"):
        pytest.importorskip("sentence_transformers")
    with pytest.raises(UserError, match=r"the hub does not give it.*Check the name and the network") as caught:
        load_teacher(spec)
    assert caught.value.where == spec
    assert not hub.exists() or not list(hub.rglob("*.safetensors"))


@pytest.mark.parametrize("spec", ["", "nothing", "gpt:4", "transformers:", "python:"])
def test_a_spec_of_no_form_is_answered_with_the_forms(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        load_teacher(spec)
    for form in ("ARCH:TAG", "hf-hub:", "transformers:", "sentence-transformers:", "python:"):
        assert form in str(caught.value)


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match="this device cannot be used"):
        load_teacher("nowhere/at-all", Forward(device="warp"))


def test_a_misspelt_architecture_is_answered_with_the_closest() -> None:
    with pytest.raises(UserError, match="ViT-B-32"):
        load_teacher("ViT-B-23:openai")


def test_load_model_gives_what_the_teacher_runs(clip: str) -> None:
    loaded: LoadedModel = load_model(clip)
    image = pixels(48, 1)
    with torch.no_grad():
        expected = loaded.model.encode_image(loaded.preprocess(Image.fromarray(image[0]))[None], normalize=True)
    torch.testing.assert_close(load_teacher(clip).embed_images(torch.from_numpy(image)), expected)
