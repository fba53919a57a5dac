"""A student in use: what it says is what its model computes, whoever computes it and however a picture is given."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tokenizers import Tokenizer

import clipstill
from clip_models import LoadedModel, create_student, load_model, save_model, tokenizer_for
from clipstill.main import main
from distill.export import FORMATS
from distill.export.tokenizer_file import write_tokenizer
from distill.use.pixels import preprocessed

LABELS = ["cat", "dog", "zebra crossing"]
COMPUTED = [name for name, form in FORMATS.items() if form.opens is not None and form.is_installed]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose weights are large enough to show in the embeddings."""
    folder = tmp_path_factory.mktemp("use")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 1},
    }
    (folder / "config.json").write_text(json.dumps(config))
    made, full = create_student(str(folder / "config.json"), 2)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for key, tensor in made.named_parameters():
            if key != "logit_scale":
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    save_model(made, full, str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def student(model: Path) -> Any:
    return clipstill.load(model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, (width, height) in enumerate([(96, 64), (40, 90), (33, 33)]):
        noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@torch.no_grad()
def expected(spec: Path, paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and text embeddings, and probabilities (pictures, labels), by open_clip and numpy."""
    loaded = load_model(str(spec))
    images = loaded.model.encode_image(torch.stack([loaded.preprocess(Image.open(path)) for path in paths])).numpy()
    rows = loaded.model.encode_text(loaded.tokenizer([f"a photo of a {name}" for name in LABELS])).numpy()
    images, rows = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (images, rows))
    logits = loaded.model.logit_scale.exp().item() * images @ rows.T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return images, rows, shares


def test_a_model_says_what_open_clip_computes(student: Any, model: Path, pictures: list[Path]) -> None:
    images, texts, shares = expected(model, pictures)
    np.testing.assert_allclose(student.embed_images(pictures), images, atol=1e-6)
    np.testing.assert_allclose(student.embed_texts([f"a photo of a {name}" for name in LABELS]), texts, atol=1e-6)
    found = student.classify(pictures, LABELS)
    for row, labels in zip(shares, found, strict=True):
        assert list(labels) == [LABELS[at] for at in np.argsort(-row)]
        assert [labels[name] for name in LABELS] == pytest.approx(row, abs=1e-5)
    assert student.classify(pictures[1], LABELS) == pytest.approx(found[1])


@pytest.mark.parametrize("name", COMPUTED)
def test_each_export_says_the_same(name: str, model: Path, tmp_path: Path, pictures: list[Path]) -> None:
    FORMATS[name](load_model(str(model)), str(tmp_path / "out"))
    images, texts, shares = expected(model, pictures)
    there = clipstill.load(tmp_path / "out", "cpu")
    np.testing.assert_allclose(there.embed_images(pictures), images, atol=1e-5)
    np.testing.assert_allclose(there.embed_texts(f"a photo of a {LABELS[2]}"), texts[2], atol=1e-5)
    found = there.classify(pictures[0], LABELS)
    assert [found[label] for label in LABELS] == pytest.approx(shares[0], abs=1e-4)


def test_templates_are_averaged_as_unit_vectors(student: Any, pictures: list[Path]) -> None:
    templates = ["a photo of a {}", "{c} in the snow, a {}"]
    prompts = [[form.replace("{}", name).replace("{c}", name) for form in templates] for name in LABELS]
    means = np.stack([student.embed_texts(two).mean(axis=0) for two in prompts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    logits = np.exp(np.log(1 / 0.07)) * student.embed_images(pictures[0]) @ means.T
    found = student.classify(pictures[0], LABELS, templates)
    assert [found[name] for name in LABELS] == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-5)


def test_a_picture_may_be_given_in_any_form(student: Any, pictures: list[Path]) -> None:
    path = pictures[0]
    wanted = student.embed_images(path)
    assert wanted.shape == (24,)
    with Image.open(path) as image:
        for given in (str(path), path.read_bytes(), image, np.asarray(image)):
            np.testing.assert_array_equal(student.embed_images(given), wanted)
        stacked = np.stack([np.asarray(image)] * 2)
    np.testing.assert_allclose(student.embed_images(stacked), np.stack([wanted] * 2), atol=1e-6)
    rows = student.embed_images(path for _ in range(70))
    np.testing.assert_allclose(rows, np.stack([wanted] * 70), atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(student: Any, pictures: list[Path], orientation: int) -> None:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(pictures[0]) as image:
        sink = io.BytesIO()
        image.save(sink, "PNG", exif=exif)
        upright = image.transpose(turns[orientation]) if orientation > 1 else image
        wanted = student.embed_images(np.asarray(upright))
    for given in (sink.getvalue(), Image.open(sink)):
        np.testing.assert_array_equal(student.embed_images(given), wanted)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, [24, 40]])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_open_clips_to_the_bit(mode: str, size: Any, interpolation: str) -> None:
    settings = {
        "size": size,
        "mean": [0.48, 0.4, 0.5],
        "std": [0.2, 0.3, 0.26],
        "resize_mode": mode,
        "interpolation": interpolation,
        "fill_color": 3,
    }
    transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)  # type: ignore[arg-type]
    for number, (width, height) in enumerate([(97, 64), (30, 91), (32, 32), (50, 49), (20, 7), (400, 16)]):
        noise = np.random.default_rng(number).integers(0, 256, (9, 9, 4), dtype=np.uint8)
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        for kind in ("RGB", "L", "RGBA"):
            there = transform(image.convert(kind)).numpy()
            np.testing.assert_array_equal(preprocessed(image.convert(kind), settings), there, str((width, height)))


HARD = [
    "a cat",
    "ΟΔΟΣ &amp; “Straße” ﬁn",
    "it's  ''  l'été 😀👨‍👩‍👧",
    "",
    "word " * 99,
    "½²_x 日本 don't!!?",
    "<|endoftext|>s",
]


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_the_tokenizers_file_gives_open_clips_ids(tmp_path: Path, clean: str) -> None:
    text = {"context_length": 20, "vocab_size": 49408, "tokenizer_kwargs": {"clean": clean}}
    config = {"model_cfg": {"text_cfg": text}}
    own = tokenizer_for(config)
    has_text = type("Model", (), {"encode_text": None})()
    loaded = LoadedModel("tiny", has_text, config, lambda _: torch.empty(0), own)
    assert write_tokenizer(tmp_path, loaded) in (1, 2)
    file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    plain = [text for text in HARD if "&" not in text and "<" not in text]
    np.testing.assert_array_equal([one.ids for one in file.encode_batch(plain)], own(plain).numpy())
    from distill.use.text import TextTokens  # noqa: PLC0415

    np.testing.assert_array_equal(TextTokens(tmp_path, text)(HARD[:-1]), own(HARD[:-1]).numpy())


WRONG: list[tuple[Any, str]] = [
    ("nowhere.jpg", "nowhere.jpg: there is no such picture"),
    ("https://a.example/cat.jpg", "no such picture.*nothing is downloaded"),
    (b"\xff\xd8\xffnothing", "cannot be decoded"),
    (b"", "cannot be decoded"),
    (17, "a int, not a picture"),
    ([], None),
    (np.zeros((3, 32, 32), np.float32), r"\(3, 32, 32\) and float32 is not a picture"),
    (np.zeros((0, 4, 3), np.uint8), "is not a picture"),
]


@pytest.mark.parametrize(("given", "says"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_picture_is_told_in_a_line(student: Any, given: Any, says: str | None) -> None:
    if says is None:
        assert student.classify(given, LABELS) == []
        says = "no pictures were given"
    with pytest.raises(clipstill.UserError, match=says) as told:
        student.embed_images(given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("labels", "templates", "says"),
    [
        ("cat", None, "at least two"),
        (["cat"], None, "at least two"),
        (["cat", " "], None, "at least two"),
        (["cat", "dog", "cat"], None, "'cat' is there twice"),
        (LABELS, "a {}", "list of at least one"),
        (LABELS, ["a photo"], r"'a photo' has no \{\}"),
        (LABELS, [], "at least one"),
    ],
)
def test_labels_and_templates_that_say_nothing_are_refused(
    student: Any, pictures: list[Path], labels: Any, templates: Any, says: str
) -> None:
    with pytest.raises(clipstill.UserError, match=says):
        student.classify(pictures[0], labels, *([] if templates is None else [templates]))


def test_a_run_is_its_best_model_and_else_its_last(model: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(clipstill.UserError, match="no model yet"):
        clipstill.load(tmp_path)
    made = load_model(str(model))
    save_model(made.model, made.config, str(tmp_path / "model"))
    last = clipstill.load(tmp_path).embed_texts("a cat")
    with torch.no_grad():
        made.model.text_projection.add_(1)
    save_model(made.model, made.config, str(tmp_path / "best"))
    best = clipstill.load(tmp_path).embed_texts("a cat")
    assert np.abs(best - last).max() > 0.01
    np.testing.assert_array_equal(best, clipstill.load(tmp_path / "best").embed_texts("a cat"))


def test_an_image_tower_alone_embeds_pictures_and_says_who_must_embed_texts(
    model: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    made, config = create_student(str(model), 0, ("image",))
    save_model(made, config, str(tmp_path / "alone"))
    FORMATS["onnx"](load_model(str(tmp_path / "alone")), str(tmp_path / "onnx"))
    for folder in ("alone", "onnx"):
        alone = clipstill.load(tmp_path / folder)
        assert alone.embed_images(pictures).shape == (3, 24)
        with pytest.raises(clipstill.UserError, match=r"no text tower.*of its teacher"):
            alone.classify(pictures, LABELS)


def test_onnx_is_computed_without_torch_and_nothing_slow_is_imported_early(
    model: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    FORMATS["onnx"](load_model(str(model)), str(tmp_path / "onnx"))
    program = (
        "import sys, clipstill; loaded = {'numpy', 'torch', 'PIL'} & set(sys.modules); assert not loaded, loaded;"
        f"found = clipstill.load({str(tmp_path / 'onnx')!r}).classify({str(pictures[0])!r}, {LABELS!r});"
        "loaded = {'torch', 'open_clip', 'transformers'} & set(sys.modules); assert not loaded, loaded; print(found)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout


def test_the_command_line_says_what_the_call_does(
    student: Any, model: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in pictures]
    assert main(["classify", str(model), *paths, "--labels", ", ".join(LABELS)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == paths
    for line, wanted in zip(lines, student.classify(paths, LABELS), strict=True):
        assert line["labels"] == pytest.approx(wanted, abs=1e-4)
        assert list(line["labels"]) == list(wanted)
    out = tmp_path / "embedded.npz"
    assert main(["embed", str(model), *paths, "--text", "a cat", "--text", "ein Hündchen", "--out", str(out)]) == 0
    with np.load(out) as arrays:
        assert arrays["images"].tolist() == paths
        assert arrays["texts"].tolist() == ["a cat", "ein Hündchen"]
        np.testing.assert_allclose(arrays["image_embeddings"], student.embed_images(paths), atol=1e-6)
        np.testing.assert_allclose(arrays["text_embeddings"][1], student.embed_texts("ein Hündchen"), atol=1e-6)
    capsys.readouterr()
    # Prompts of each label, as many as it has: the mean of their unit rows.
    prompts = {"cat": ["a cat", "my cat", "the cat"], "dog": ["a dog"]}
    (tmp_path / "own.json").write_text(json.dumps({"prompts": prompts}))
    assert main(["classify", str(model), paths[0], "--classes", str(tmp_path / "own.json")]) == 0
    told = json.loads(capsys.readouterr().out)["labels"]
    means = np.stack([student.embed_texts(texts).mean(axis=0) for texts in prompts.values()])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    logits = student._encoders.scale * means @ student.embed_images(paths[0])
    assert [told["cat"], told["dog"]] == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=1e-4)
    (tmp_path / "names.json").write_text(json.dumps({"classes": LABELS, "templates": ["one {c}"]}))
    assert main(["classify", str(model), paths[0], "--classes", str(tmp_path / "names.json")]) == 0
    told = json.loads(capsys.readouterr().out)["labels"]
    assert told == pytest.approx(student.classify(paths[0], LABELS, ["one {c}"]), abs=1e-4)
    for line, says in {
        f"embed {model} {paths[0]} --out {out}": "there is something already",
        f"embed {model} --out {tmp_path}/new.npz": "neither pictures nor texts",
        f"embed {model} --text a --out {tmp_path}/new.npy": "ends in .npz",
        f"classify {model} {model} --labels a,b": "a folder, not a picture",
        f"classify {tmp_path} {paths[0]} --labels a,b": "no folder of a student",
    }.items():
        assert main(line.split()) == 2
        assert says in capsys.readouterr().err
