"""Loading, creating and saving models: what open_clip itself would compute, and every refusal."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import clip_models.models
from clip_models import create_student, load_model, save_model, tokenizer_for
from shards.errors import UserError

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tiny architecture with a downloadable tag, known to open_clip as its own ones are; returns the tag's file."""
    weights = tmp_path / "tag.safetensors"
    tags = {
        "good": {
            "file": str(weights),
            "mean": (0.5, 0.5, 0.5),
            "interpolation": "bilinear",
            "resize_mode": "squash",
            "quick_gelu": True,
        },
        "far": {"url": "http://127.0.0.1:9/far.pt"},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-Tiny-8", TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-Tiny-8", tags)
    return weights


def inputs(context_length: int = 16) -> tuple[Tensor, Tensor]:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    return pixels, open_clip.get_tokenizer("", context_length=context_length)(["a cat", "two dogs", "x"])


@torch.no_grad()
def embeddings(model: Any) -> Tensor:
    pixels, tokens = inputs()
    return torch.cat([model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)])


def test_a_student_is_a_function_of_configuration_and_seed(tiny: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, config = create_student(tiny, seed=11)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, _ = create_student(tiny, seed=11)
    other, _ = create_student(tiny, seed=12)
    for (name, here), there in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(here, there), name
    assert not torch.equal(first.visual.proj, other.visual.proj)
    assert first.training
    assert config["model_cfg"] == TINY
    assert config["preprocess_cfg"]["size"] == 32


@pytest.mark.usefixtures("registered")
def test_a_student_by_name_is_open_clips_architecture() -> None:
    student, config = create_student("ViT-Tiny-8", seed=0)
    theirs = open_clip.create_model("ViT-Tiny-8")
    assert {k: v.shape for k, v in student.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(student.state_dict())
    assert torch.equal(embeddings(student.eval()), embeddings(theirs.eval()))
    config["model_cfg"]["embed_dim"] = 1
    assert open_clip.get_model_config("ViT-Tiny-8")["embed_dim"] == 24


def test_save_and_load_agree_with_open_clip(tiny: str, tmp_path: Path) -> None:
    model, config = create_student(tiny, seed=3)
    folder = tmp_path / "runs" / "student"
    save_model(model, config, str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1

    expected = embeddings(model.eval())
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    for spec in (str(folder), f"local-dir:{folder}"):
        loaded = load_model(spec)
        assert not loaded.model.training
        assert torch.equal(embeddings(loaded.model), expected)
        assert torch.equal(embeddings(loaded.model), embeddings(theirs.eval()))
        assert torch.equal(loaded.preprocess(picture), preprocess(picture))
        assert loaded.config == config
    texts = ["A Cat &amp; a dog", "far too long " * 20]
    assert torch.equal(loaded.tokenizer(texts), open_clip.get_tokenizer(f"local-dir:{folder}")(texts))
    assert loaded.tokenizer(texts).shape == (2, 16)


def test_save_handles_shared_strided_and_half_tensors(tiny: str, tmp_path: Path) -> None:
    model, config = create_student(tiny, seed=3)
    model.visual.ln_post.weight = model.visual.ln_pre.weight
    model.visual.proj = nn.Parameter(torch.randn(24, 64).T)
    block = torch.randn(2, 64)
    model.ln_final.weight, model.ln_final.bias = nn.Parameter(block[0]), nn.Parameter(block[1])
    save_model(model, config, str(tmp_path / "out"))
    back = load_model(str(tmp_path / "out")).model
    for (name, here), there in zip(model.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(here, there), name

    half = model.half()
    save_model(half, config, str(tmp_path / "half"))
    back = load_model(str(tmp_path / "half")).model
    assert back.visual.proj.dtype == torch.float32
    assert torch.equal(back.visual.proj, half.visual.proj.float())


def test_a_killed_save_leaves_the_old_model_or_none(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "out")
    model, config = create_student(tiny, seed=3)
    save_model(model, config, folder)
    expected = embeddings(load_model(folder).model)

    def killed(_tensors: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(clip_models.models, "save_file", killed)
    newer, _ = create_student(tiny, seed=4)
    with pytest.raises(KeyboardInterrupt):
        save_model(newer, config, folder)
    assert torch.equal(embeddings(load_model(folder).model), expected)

    # With another configuration the old one must not stay beside whatever weights are there.
    changed = {**config, "preprocess_cfg": {**config["preprocess_cfg"], "resize_mode": "squash"}}
    with pytest.raises(KeyboardInterrupt):
        save_model(newer, changed, folder)
    with pytest.raises(UserError, match=r"open_clip_config\.json: there is no such file"):
        load_model(folder)
    assert [path.name for path in Path(folder).iterdir()] == ["open_clip_model.safetensors"]


def test_a_tag_brings_its_activation_and_preprocessing(registered: Path, tmp_path: Path) -> None:
    source, config = create_student("ViT-Tiny-8", seed=6)
    save_model(source, config, str(tmp_path / "source"))
    (tmp_path / "source" / "open_clip_model.safetensors").rename(registered)
    loaded = load_model("ViT-Tiny-8:good")

    assert loaded.config["model_cfg"]["quick_gelu"] is True
    theirs, _, preprocess = open_clip.create_model_and_transforms("ViT-Tiny-8", "good", force_quick_gelu=True)
    assert torch.equal(embeddings(loaded.model), embeddings(theirs.eval()))
    assert not torch.allclose(embeddings(loaded.model), embeddings(source.eval()), atol=1e-6)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    assert torch.equal(loaded.preprocess(picture), preprocess(picture))

    by_file = load_model(f"ViT-Tiny-8:{registered}")
    assert torch.equal(embeddings(by_file.model), embeddings(source.eval()))


@pytest.mark.usefixtures("registered")
def test_a_checkpoint_of_open_clips_trainer_loads(tmp_path: Path) -> None:
    source, _ = create_student("ViT-Tiny-8", seed=6)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    loaded = load_model(f"ViT-Tiny-8:{tmp_path}/epoch_3.pt")
    assert torch.equal(embeddings(loaded.model), embeddings(source.eval()))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.usefixtures("registered")
def test_no_pickled_code_runs(tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    torch.save({"state_dict": {}, "evil": Evil(trace)}, tmp_path / "evil.pt")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil(trace)))
    for name in ("evil.pt", "evil.bin"):
        with pytest.raises(UserError, match=r"Python objects|cannot be loaded"):
            load_model(f"ViT-Tiny-8:{tmp_path}/{name}")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ViT-B32:openai", "no architecture 'ViT-B32'.*closest are ViT-B-32"),
        ("vit-tiny-8:good", "closest are ViT-Tiny-8"),
        ("ViT-Tiny-8:best", "'best' is no tag of ViT-Tiny-8.*good, far"),
        ("ViT-Tiny-8", "no weights are named for ViT-Tiny-8.*good, far"),
        ("ViT-Tiny-8:/no/such.safetensors", "/no/such.safetensors: there is no such weights file"),
        ("ViT-Tiny-8:/no/such.npz", r"weights end in \.safetensors"),
        ("/no/such/folder", "/no/such/folder: there is no such folder"),
        ("local-dir:nowhere", "there is no such folder"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_load_refuses(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("registered")
def test_a_tag_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"ViT-Tiny-8:far: the weights cannot be downloaded.*ARCH:/path"):
        load_model("ViT-Tiny-8:far")


@pytest.mark.usefixtures("registered")
def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    model, config = create_student("ViT-Tiny-8", seed=6)
    folder = tmp_path / "m"

    def error(changed: dict[str, Any]) -> str:
        save_model(model, {**config, "model_cfg": {**TINY, **changed}}, str(folder))
        with pytest.raises(UserError) as caught:
            load_model(str(folder))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value).replace(str(tmp_path), "")) < 400
        return str(caught.value)

    assert "size mismatch for text_projection" in error({"embed_dim": 32})
    assert "lacks 12 tensors, 'visual.transformer.resblocks.2." in error(
        {"vision_cfg": {**TINY["vision_cfg"], "layers": 3}}
    )
    assert "no place for 12 tensors, 'transformer.resblocks.1." in error(
        {"text_cfg": {**TINY["text_cfg"], "layers": 1}}
    )
    save_model(model, config, str(folder))
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="weights cannot be loaded"):
        load_model(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors: there is no such weights file"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "holds a list"),
        (json.dumps({"embed_dim": 8, "text_cfg": {}}), "missing or of the wrong kind: vision_cfg"),
        (
            json.dumps({**TINY, "vision_cfg": {**TINY["vision_cfg"], "widht": 3}}),
            "no field 'widht'. Did you mean width",
        ),
        (json.dumps({**TINY, "vision_cfg": {**TINY["vision_cfg"], "head_width": 20}}), "no model can be built"),
    ],
)
def test_create_refuses_files(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=says):
        create_student(str(tmp_path / "config.json"), seed=0)


def test_create_refuses_names() -> None:
    with pytest.raises(UserError, match=r"'ViT-B-33'.*closest are ViT-B-32.*path of a \.json file works too"):
        create_student("ViT-B-33", seed=0)
    with pytest.raises(UserError, match=r"nowhere\.json: there is no such file"):
        create_student("nowhere.json", seed=0)
    for place in ("./nowhere", "runs/nowhere/model"):
        with pytest.raises(UserError, match=rf"{place}: there is no such file or folder"):
            create_student(place, seed=0)


def test_of_a_runs_folder_its_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    save_model(*create_student(str(tmp_path / "config.json"), 0), str(tmp_path / "run" / "model"))
    with pytest.raises(UserError, match=r"a run's folder, not a model's. Give .*run/model"):
        load_model(str(tmp_path / "run"))


def test_the_tokenizer_follows_the_configuration(tmp_path: Path) -> None:
    texts = ["One CAT, two dogs!", "more words than fit here " * 5]
    for length in (8, 32, 77):
        config = {"model_cfg": {**TINY, "text_cfg": {**TINY["text_cfg"], "context_length": length}}}
        assert torch.equal(tokenizer_for(config)(texts), open_clip.SimpleTokenizer(context_length=length)(texts))

    text_cfg = {**TINY["text_cfg"], "tokenizer_kwargs": {"clean": "canonicalize"}}
    assert torch.equal(
        tokenizer_for({"model_cfg": {**TINY, "text_cfg": text_cfg}})(texts[:1]),
        open_clip.SimpleTokenizer(context_length=16)(["one cat two dogs"]),
    )
    missing = {**TINY["text_cfg"], "hf_tokenizer_name": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match="nowhere: the tokenizer cannot be loaded"):
        tokenizer_for({"model_cfg": {**TINY, "text_cfg": missing}})
