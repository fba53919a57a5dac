"""Teachers as transformers saves them: tiny CLIP and SigLIP models; its own processors and models are the reference."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
)

from shards import UserError
from teacher_cache.teachers import Forward, load_teacher
from teacher_cache.views import EncodedImage, View, ViewPolicy

TEXTS = ["a red cat", "Two DOGS, near the river!", "", "an old house " * 30]

_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TOWER, "image_size": 24, "patch_size": 8}


def save_clip(folder: Path) -> str:
    # CLIP's own vocabulary, cut short: bytes, their ends of words, the first merges.
    own = open_clip.SimpleTokenizer()
    merges = list(own.bpe_ranks)[:300]
    words = [*list(own.encoder)[: 512 + len(merges)], "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: at for at, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    text = {**_TOWER, "vocab_size": len(words), "max_position_embeddings": 16}
    text |= {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(projection_dim=20, vision_config=_VISION, text_config=text))
    images = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    model.save_pretrained(folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return f"transformers:{folder}"


def save_siglip(folder: Path) -> str:
    folder.mkdir()
    sink = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red cat", "two dogs near the river", "an old house"] * 50),
        model_writer=sink,
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"pad_id": -1, "bos_id": -1, "eos_id": 1, "unk_id": 0},
    )
    (folder / "spiece.model").write_bytes(sink.getvalue())
    # As in the published models: no mask, the model attends to its padding.
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16, model_input_names=["input_ids"])
    text = {**_TOWER, "vocab_size": 48, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(1)
    model = SiglipModel(SiglipConfig(vision_config=_VISION, text_config=text))
    with torch.no_grad():
        model.logit_scale.fill_(float(np.log(117.0)))
        model.logit_bias.fill_(-16.5)
    model.save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 24, "width": 24}), tokenizer).save_pretrained(folder)
    return f"transformers:{folder}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_siglip(tmp_path_factory.mktemp("siglip") / "model")


def pixels() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)


def unit(embeddings: torch.Tensor) -> np.ndarray:
    rows = embeddings.detach().double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_embeddings_are_those_of_the_processor_and_the_model(kind: str, request: pytest.FixtureRequest) -> None:
    spec: str = request.getfixturevalue(kind)
    folder = spec.removeprefix("transformers:")
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    batch = processor(
        images=[Image.fromarray(image) for image in pixels()],
        text=TEXTS,
        padding="max_length",
        truncation=True,
        max_length=16,
        return_tensors="pt",
    )
    tokens = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
        read = model.get_text_features(**tokens).pooler_output
    teacher = load_teacher(spec)
    got = teacher.embed_images(torch.from_numpy(pixels())), teacher.embed_texts(TEXTS)
    for ours, theirs in zip(got, (seen, read), strict=True):
        assert (ours.dtype, ours.shape) == (torch.float32, (len(theirs), teacher.embed_dim))
        np.testing.assert_allclose(ours.numpy(), unit(theirs), atol=2e-6)
        np.testing.assert_allclose(ours.norm(dim=1).numpy(), 1, atol=1e-6)


def test_the_logits_are_those_of_siglip(siglip: str) -> None:
    model = SiglipModel.from_pretrained(siglip.removeprefix("transformers:")).eval()
    teacher = load_teacher(siglip)
    images = torch.from_numpy(pixels())
    tokens = teacher._tokens(TEXTS)
    normal = images.permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = model(input_ids=tokens["input_ids"], pixel_values=normal).logits_per_image
    logits = teacher.logit_scale * teacher.embed_images(images) @ teacher.embed_texts(TEXTS).T + teacher.logit_bias
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_the_facts_of_a_clip_and_of_a_siglip(clip: str, siglip: str) -> None:
    plain, sigmoid = load_teacher(clip), load_teacher(siglip)
    assert (plain.image_size, plain.resize_mode, plain.has_text, plain.embed_dim) == (24, "shortest", True, 20)
    assert plain.interpolation == sigmoid.interpolation == "bicubic"
    assert plain.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert plain.logit_bias is None
    assert plain.identity["preprocess"]["mean"] == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert (sigmoid.image_size, sigmoid.resize_mode, sigmoid.embed_dim) == (24, "squash", 32)
    assert sigmoid.logit_scale == pytest.approx(117)
    assert sigmoid.logit_bias == -16.5
    assert sigmoid.identity["preprocess"]["std"] == [0.5] * 3
    for teacher in (plain, sigmoid):
        assert json.loads(json.dumps(teacher.identity)) == teacher.identity


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_tower_alone_embeds_alike_and_keeps_the_identity(kind: str, request: pytest.FixtureRequest) -> None:
    spec: str = request.getfixturevalue(kind)
    both, image, text = (load_teacher(spec, towers=towers) for towers in ("both", "image", "text"))
    images = torch.from_numpy(pixels())
    assert torch.equal(image.embed_images(images), both.embed_images(images))
    assert torch.equal(text.embed_texts(TEXTS), both.embed_texts(TEXTS))
    assert image.identity == text.identity == both.identity
    with pytest.raises(UserError, match="loaded without its text tower"):
        image.embed_texts(TEXTS)
    numbers = [sum(p.numel() for p in teacher._model.parameters()) for teacher in (both, image, text)]
    assert numbers[1] + numbers[2] <= numbers[0]


def test_bfloat16_is_close(siglip: str) -> None:
    exact, rounded = load_teacher(siglip), load_teacher(siglip, Forward(precision="bf16"))
    images = torch.from_numpy(pixels())
    assert (exact.embed_images(images) * rounded.embed_images(images)).sum(dim=1).min() > 0.999
    assert (exact.embed_texts(TEXTS) * rounded.embed_texts(TEXTS)).sum(dim=1).min() > 0.999


@pytest.fixture
def copy(clip: str, tmp_path: Path) -> Path:
    shutil.copytree(clip.removeprefix("transformers:"), tmp_path / "copy")
    return tmp_path / "copy"


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def test_the_identity_changes_with_what_decides_the_embeddings(clip: str, copy: Path) -> None:
    standing = load_teacher(clip).identity

    def differs() -> list[str]:
        identity = load_teacher(f"transformers:{copy}").identity
        return [key for key in standing if identity[key] != standing[key]]

    change_json(copy / "config.json", lambda config: config.update(transformers_version="5.0.0", _name_or_path="x"))
    assert differs() == []
    processor = copy / "processor_config.json"
    change_json(processor, lambda config: config["image_processor"]["image_mean"].__setitem__(0, 0.4))
    assert differs() == ["preprocess"]
    change_json(copy / "config.json", lambda config: config["vision_config"].update(hidden_act="gelu"))
    assert differs() == ["model", "preprocess"]
    change_weights(copy, lambda state: state["logit_scale"].add_(0.1))
    assert differs() == ["model", "weights", "preprocess"]
    tokenizer = copy / "tokenizer.json"
    change_json(tokenizer, lambda content: content["model"].update(merges=content["model"]["merges"][:20]))
    assert differs() == ["model", "weights", "preprocess", "tokenizer"]


@pytest.mark.parametrize(
    ("change", "mode", "interpolation"),
    [
        ({"resample": 2}, "shortest", "bilinear"),
        ({"size": {"height": 24, "width": 24}}, "squash", "bicubic"),  # nothing is left to crop
        ({"do_center_crop": False, "size": {"height": 24, "width": 24}, "resample": 2}, "squash", "bilinear"),
    ],
)
def test_the_evaluation_view_is_the_processor_s(
    copy: Path, change: dict[str, Any], mode: str, interpolation: str
) -> None:
    change_processor(copy, **change)
    teacher = load_teacher(f"transformers:{copy}", towers="image")
    assert (teacher.resize_mode, teacher.interpolation) == (mode, interpolation)
    chosen = teacher.identity["preprocess"]
    assert (chosen["resize_mode"], chosen["interpolation"]) == (mode, interpolation)
    # Its own processor, of a picture that is not square, by way of Pillow: to the bit.
    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    own = AutoImageProcessor.from_pretrained(copy, backend="pil")
    expected = own(picture, return_tensors="pt", do_rescale=False, do_normalize=False)["pixel_values"][0]
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    policy = ViewPolicy(kind={"shortest": "centre", "squash": "squash"}[mode], interpolation=teacher.interpolation)
    got = policy.render(EncodedImage(sink.getvalue()), View(0.0, 0.0, 1.0, 1.0, False), 24)
    assert np.array_equal(got, expected.permute(1, 2, 0).numpy())


def change_processor(folder: Path, **fields: Any) -> None:
    change_json(folder / "processor_config.json", lambda config: config["image_processor"].update(fields))


def _pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_pickle_instead, "cannot be loaded.*model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (
            lambda folder: change_weights(folder, lambda state: state.pop("visual_projection.weight")),
            "the weights lack 1 tensors, 'visual_projection.weight' the first",
        ),
        (
            lambda folder: change_json(folder / "config.json", lambda config: config.update(model_type="bert")),
            "a model of type 'bert'; teachers are clip and siglip",
        ),
        (
            lambda folder: change_processor(folder, crop_size={"height": 32, "width": 32}),
            "makes images of .*32.*, the model sees 24 x 24",
        ),
        (
            lambda folder: change_processor(folder, size={"shortest_edge": 28}),
            r"resizes images to \{'shortest_edge': 28\}, then keeps the middle 24 x 24",
        ),
        (lambda folder: change_processor(folder, do_resize=False), "does not resize images"),
        (
            lambda folder: change_processor(folder, resample=0),
            r"resample 0; known are 2 \(bilinear\) and 3 \(bicubic\)",
        ),
        (lambda folder: change_processor(folder, rescale_factor=0.5), "rescales pixels by 0.5"),
        (lambda folder: (folder / "config.json").unlink(), "cannot be loaded"),
    ],
)
def test_a_folder_that_will_not_do_is_one_clear_error(copy: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        load_teacher(f"transformers:{copy}")
    assert caught.value.where == f"transformers:{copy}"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        load_teacher(f"transformers:{tmp_path / 'none'}")
