"""Zero-shot classification against numpy, and the evaluation of a real model on a real (tiny) dataset."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clip_models import LoadedModel, create_student, load_model, save_model
from evaluation import Evaluation, Prompts, SetSettings, TextCache, evaluate, top_k
from evaluation.embedding import Encoder
from evaluation.sets.dataset import of_dataset
from shards import Dataset, Folder, UserError, write_dataset


class PromptTable(nn.Module):
    """A "text tower" that looks each known prompt up in a table, so that expected values need no model."""

    def __init__(self, prompts: Sequence[str], width: int = 6) -> None:
        super().__init__()
        self.prompts = list(prompts)
        rows = np.random.default_rng(3).normal(size=(len(prompts), width)) * 5
        self.table = nn.Parameter(torch.tensor(rows, dtype=torch.float32))

    def tokenizer(self, texts: list[str]) -> Tensor:
        return torch.tensor([[self.prompts.index(text)] for text in texts])

    def classes(self, names: Sequence[str], templates: Sequence[Any]) -> Tensor:
        """What zero-shot chooses among, by this tower."""
        loaded = LoadedModel("table", self.eval(), {}, lambda _: torch.empty(0), self.tokenizer)
        return Encoder(loaded, "cpu").classes(Prompts(tuple(names), tuple(templates)))

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        assert not normalize
        return self.table[tokens[:, 0]]


def test_class_weights_average_normalised_prompts() -> None:
    model = PromptTable(["a cat", "the cat!", "a dog", "the dog!", "a red fox", "the red fox!"])
    weights = model.classes(["cat", "dog", "red fox"], ["a {c}", lambda name: f"the {name}!"])

    table = model.table.detach().numpy().astype(np.float64)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    means = np.stack([unit[0:2].mean(0), unit[2:4].mean(0), unit[4:6].mean(0)])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-6)
    assert weights.dtype == torch.float32
    assert not weights.requires_grad


def test_a_model_in_float64_is_judged_in_float64(loaded: LoadedModel, tmp_path: Path) -> None:
    """To the last digits, which float32 would have cut."""
    names = ["cat", "dog", "fox"]
    model = PromptTable([f"a {name}" for name in names]).double()
    table = np.random.default_rng(9).normal(size=(3, 6))
    model.table.data = torch.tensor(table)
    weights = model.classes(names, ["a {}"])
    assert weights.dtype == torch.float64
    np.testing.assert_allclose(weights.numpy(), table / np.linalg.norm(table, axis=1, keepdims=True), rtol=1e-14)

    double = replace(loaded, model=copy.deepcopy(loaded.model).double())
    dataset = make_dataset(tmp_path, [(picture(at, "red"), f"thing {at}", {}) for at in range(3)])
    seen: list[torch.dtype] = []
    double.model.visual.register_forward_hook(lambda _, given, out: seen.extend((given[0].dtype, out.dtype)))
    evaluate(double, of_dataset(dataset, SetSettings()), batch_size=2)
    assert set(seen) == {torch.float64}


def test_class_weights_do_not_depend_on_how_prompts_are_batched() -> None:
    names = [f"thing {number}" for number in range(200)]
    model = PromptTable([text for name in names for text in (f"a {name}", f"b {name}", f"c {name}")])
    together = model.classes(names, ["a {}", "b {}", "c {}"])
    alone = model.classes(names[150:151], ["a {}", "b {}", "c {}"])
    np.testing.assert_allclose(together[150:151].numpy(), alone.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "templates", "says"),
    [([], ["a {}"], "0 classes"), (["cat"], [], "0 templates"), (["cat"], ["a {d}"], "'a {d}' has no {}")],
)
def test_class_weights_refuses(classes: list[str], templates: list[str], says: str) -> None:
    model = PromptTable(["a cat"])
    with pytest.raises(UserError, match=says):
        model.classes(classes, templates)


def test_top_k_equals_counting_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of 3 rows, so that the last one is not full.
    monkeypatch.setattr("evaluation.zero_shot._LOGITS_A_BLOCK", 3 * 12)
    rng = np.random.default_rng(0)
    images, weights = rng.normal(size=(50, 8)), rng.normal(size=(12, 8))
    labels = rng.integers(0, 12, 50)
    got = top_k(torch.tensor(images), torch.tensor(weights), torch.tensor(labels), ks=(1, 3, 5))

    order = np.argsort(-(images @ weights.T), axis=1)
    for k in (1, 3, 5):
        hits = [label in row[:k] for label, row in zip(labels, order, strict=True)]
        assert got[f"top{k}"] == pytest.approx(100 * np.mean(hits))
    assert 0 < got["top1"] < got["top5"] < 100


def test_top_k_of_a_collapsed_model_is_chance_and_nan_is_a_miss() -> None:
    weights = torch.eye(10)
    labels = torch.arange(10)
    constant = torch.full((10, 10), 0.3)
    assert top_k(constant, weights, labels) == {"top1": pytest.approx(10.0), "top5": pytest.approx(50.0)}
    broken = torch.full((10, 10), torch.nan)
    assert top_k(broken, weights, labels) == {"top1": 0.0, "top5": 0.0}


COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    (folder / "tiny.json").write_text(json.dumps(config))
    model, full = create_student(str(folder / "tiny.json"), seed=1)
    save_model(model, full, str(folder / "saved"))
    return load_model(str(folder / "saved"))


def picture(number: int, colour: str) -> bytes:
    noise = np.random.default_rng(number).integers(-30, 30, (40, 56, 3))
    pixels = (noise + np.array(COLOURS[colour])).clip(0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def make_dataset(folder: Path, samples: Sequence[tuple[bytes, str, dict[str, Any]]]) -> Dataset:
    keyed = [(f"t-{row}", image, caption, meta) for row, (image, caption, meta) in enumerate(samples)]
    return write_dataset(folder, keyed, name="t", shard_size=4)


def judged(
    loaded: LoadedModel, dataset: Dataset, classes: dict[str, Any] | None = None, label: str | None = None, **more: Any
) -> Evaluation:
    """What `classes`, a file's content, and `label` give on a dataset."""
    path = None
    if classes is not None:
        path = str(dataset.folder.path.parent / "classes.json")
        Path(path).write_text(json.dumps(classes))
    settings = SetSettings(classes=path, label=label)
    return evaluate(loaded, of_dataset(dataset, settings), **{"batch_size": 3, **more})


def numpy_ranks(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    ranks = []
    for row, correct in zip(similarity, right, strict=True):
        order = np.argsort(-row)
        ranks.append(1 + min(place for place, column in enumerate(order) if correct[column]))
    return np.array(ranks)


def test_evaluate_equals_one_sample_at_a_time(loaded: LoadedModel, tmp_path: Path) -> None:
    colours = ["red", "green", "blue", "green", "red", "red", "blue", "green", "blue", "red", "green"]
    captions = [
        f"{colour} thing" if number % 3 else f"{colour} number {number}" for number, colour in enumerate(colours)
    ]
    samples = [
        (picture(number, colour), caption, {"colour": colour})
        for number, (colour, caption) in enumerate(zip(colours, captions, strict=True))
    ]
    names, templates = ["blue", "red", "green"], ["a {} thing", "{c}"]
    cache = TextCache(tmp_path / "texts")
    asked = {"classes": names, "templates": templates}
    got = judged(loaded, make_dataset(tmp_path / "data", samples), asked, "colour", cache=cache).result

    with torch.no_grad():
        images = torch.cat(
            [
                loaded.model.encode_image(loaded.preprocess(Image.open(io.BytesIO(data)))[None], normalize=True)
                for data, _, _ in samples
            ]
        ).double()
        texts = torch.cat(
            [loaded.model.encode_text(loaded.tokenizer([text]), normalize=True) for text in captions]
        ).double()
    similarity = (images @ texts.T).numpy()
    same = np.array(captions)[:, None] == np.array(captions)[None, :]
    assert same.sum() > len(captions)
    for way, table in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        ranks = numpy_ranks(table, same)
        assert got["retrieval"][way]["R@1"] == pytest.approx(100 * np.mean(ranks <= 1))
        assert got["retrieval"][way]["R@5"] == pytest.approx(100 * np.mean(ranks <= 5))
        assert got["retrieval"][way]["mean_rank"] == pytest.approx(ranks.mean())
        assert got["retrieval"][way]["median_rank"] == np.median(ranks)

    with torch.no_grad():
        prompts = [[f"a {name} thing", name] for name in names]
        rows = [
            loaded.model.encode_text(loaded.tokenizer(two), normalize=True).double().numpy().mean(0) for two in prompts
        ]
    weights = np.stack([row / np.linalg.norm(row) for row in rows])
    chosen = np.argmax(images.numpy() @ weights.T, axis=1)
    right = np.array([names[c] == colour for c, colour in zip(chosen, colours, strict=True)])
    assert got["zero_shot"]["top1"] == pytest.approx(100 * right.mean())
    recalls = [right[np.array(colours) == name].mean() for name in names]
    assert got["zero_shot"]["mean_per_class"] == pytest.approx(100 * np.mean(recalls))
    assert "top5" not in got["zero_shot"]
    assert got["zero_shot"]["classes"] == 3
    assert got["samples"] == 11
    json.dumps(got)


def test_one_caption_for_all_is_always_found(loaded: LoadedModel, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [(picture(number, "red"), "the same words", {}) for number in range(12)])
    got = judged(loaded, dataset).result
    assert got["retrieval"]["image_to_text"]["R@1"] == 100.0
    assert got["retrieval"]["text_to_image"]["R@1"] == 100.0
    assert "zero_shot" not in got


def test_a_class_named_twice_is_one_class(loaded: LoadedModel, tmp_path: Path) -> None:
    samples = [(picture(number, colour), colour, {"colour": colour}) for number, colour in enumerate(COLOURS)]
    dataset = make_dataset(tmp_path / "data", samples)

    def zero_shot(classes: list[str]) -> Any:
        return judged(loaded, dataset, {"classes": classes, "templates": ["{}"]}, "colour").result["zero_shot"]

    assert zero_shot(["red", "green", "red", "blue", "blue"]) == zero_shot(["red", "green", "blue"])


def test_labels_may_be_names_or_places_and_classes_may_bring_prompts_of_their_own(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    names = ["green", "blue", "red"]
    colours = ["red", "green", "blue", "green", "red", "blue", "red"]
    samples = [
        (picture(at, colour), colour, {"name": colour, "place": names.index(colour), "text": str(names.index(colour))})
        for at, colour in enumerate(colours)
    ]
    dataset = make_dataset(tmp_path / "data", samples)
    plain = {"classes": names, "templates": ["a {} thing", "{}"]}
    own = {"prompts": {name: [f"a {name} thing", name] for name in names}}
    found = [
        judged(loaded, dataset, classes, label).result["zero_shot"]
        for classes, label in ((plain, "name"), (plain, "place"), (plain, "text"), (own, "name"))
    ]
    assert found[1:] == [found[0]] * 3
    # One class has other prompts, and more of them.
    other = judged(loaded, dataset, {"prompts": {**own["prompts"], "red": ["x", "y", "z"]}}, "name")
    assert torch.equal(
        other.sides["zero_shot"].texts[:2], judged(loaded, dataset, own, "name").sides["zero_shot"].texts[:2]
    )
    assert not torch.allclose(
        other.sides["zero_shot"].texts[2], judged(loaded, dataset, own, "name").sides["zero_shot"].texts[2]
    )


def test_all_captions_of_an_image_are_judged_and_clip_kds_protocol_takes_the_first(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    captions = [
        [f"{colour} thing {at}", f"number {at}", f"a {colour}er one {at}"] for at, colour in enumerate([*COLOURS] * 2)
    ]
    rows = [(f"t-{at}", picture(at, "red"), texts, {}) for at, texts in enumerate(captions)]
    dataset = write_dataset(tmp_path, rows, name="t")
    with torch.no_grad():
        pixels = torch.stack([loaded.preprocess(sample.image) for sample in dataset])
        images = loaded.model.encode_image(pixels, normalize=True).double().numpy()
        flat = [text for texts in captions for text in texts]
        texts = loaded.model.encode_text(loaded.tokenizer(flat), normalize=True).double().numpy()
    for protocol, kept in (("standard", slice(None)), ("clip-kd", slice(0, None, 3))):
        settings = SetSettings(protocol=protocol)
        got = evaluate(loaded, of_dataset(dataset, settings)).result["retrieval"]
        similarity = images @ texts[kept].T
        right = np.arange(6)[:, None] == np.repeat(np.arange(6), 3)[kept][None, :]
        ranks = [numpy_ranks(similarity, right), numpy_ranks(similarity.T, right.T)]
        for way, found in zip(("image_to_text", "text_to_image"), ranks, strict=True):
            for k in (1, 5, 10):
                assert got[way][f"R@{k}"] == pytest.approx(100 * np.mean(found <= k)), (protocol, way, k)
            assert got[way]["mean_rank"] == pytest.approx(found.mean())
        assert got["captions"] == similarity.shape[1]


@pytest.mark.parametrize(
    ("sample", "field", "says"),
    [
        ((picture(0, "red"), "x", {"colour": "redd"}), "colour", "'t-1'.*'redd'.*closest are red"),
        ((picture(0, "red"), "x", {"colour": 3}), "colour", "label 3 in field 'colour' is no class"),
        ((picture(0, "red"), "x", {"hue": "red"}), "colour", "no field 'colour'.*Its fields:.*hue"),
        ((picture(0, "red"), "x", {"colour": "red"}), None, "no label field"),
        ((picture(0, "red"), "x", {"colour": "red"}), "colour", "all 2 images are of one class, 'red', of 2"),
    ],
)
def test_evaluate_names_what_is_wrong(
    loaded: LoadedModel, tmp_path: Path, sample: tuple[bytes, str, dict[str, Any]], field: str | None, says: str
) -> None:
    dataset = make_dataset(tmp_path / "data", [(picture(1, "red"), "x", {"colour": "red"}), sample])
    with pytest.raises(UserError, match=says):
        judged(loaded, dataset, {"classes": ["red", "blue"], "templates": ["{}"]}, field)


def test_evaluate_names_a_damaged_image(
    loaded: LoadedModel, tmp_path: Path, damage_image: Callable[[Dataset, int, int], None]
) -> None:
    dataset = make_dataset(tmp_path, [(picture(number, "red"), "x", {}) for number in range(2)])
    damage_image(dataset, 0, 1)
    with pytest.raises(UserError, match=r"'t-1'.*: the image cannot be decoded"):
        judged(loaded, dataset)


def test_a_column_of_integers_with_a_gap_is_one_of_floats(tmp_path: Path) -> None:
    samples = [(picture(row, "red"), "", {"label": label}) for row, label in enumerate([0.0, 1.0, 2.0])]
    dataset = make_dataset(tmp_path / "data", samples)
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"classes": ["cat", "dog", "bird"], "templates": ["{}"]}))
    task = of_dataset(dataset, SetSettings(classes=str(path), label="label")).tasks["zero_shot"]
    assert task.labels.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    samples[1][2]["label"] = 1.5
    with pytest.raises(UserError, match=r"the label 0.0 .* is no class"):
        of_dataset(make_dataset(tmp_path / "half", samples), SetSettings(classes=str(path), label="label"))


@pytest.mark.parametrize("tower", ["visual.proj", "text_projection"])
def test_a_broken_model_is_named(loaded: LoadedModel, tmp_path: Path, tower: str) -> None:
    """Weights that are not numbers would only make figures low; and are kept for nobody."""
    broken = copy.deepcopy(loaded)
    with torch.no_grad():
        dict(broken.model.named_parameters())[tower][:, 3] = float("nan")
    dataset = make_dataset(tmp_path / "data", [(picture(row, "red"), f"text {row}", {}) for row in range(3)])
    cache = TextCache(tmp_path / "texts")
    what = "image" if "visual" in tower else "text"
    with pytest.raises(UserError, match=rf"3 of 3 {what} embeddings are not finite, in fp32"):
        evaluate(broken, of_dataset(dataset, SetSettings()), cache=cache)
    assert len(list((tmp_path / "texts").glob("*"))) == (what == "image")


def test_evaluate_refuses_an_empty_dataset(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no samples"):
        judged(loaded, Dataset(Folder(tmp_path), "t", ()))


def test_prompts_are_embedded_once_a_model(loaded: LoadedModel, tmp_path: Path) -> None:
    """By the weights that a text passes through: a trained text tower finds nothing, another image tower all of it."""
    samples = [(picture(number, colour), colour, {"colour": colour}) for number, colour in enumerate(COLOURS)]
    dataset = make_dataset(tmp_path / "data", samples)
    asked = {"classes": [*COLOURS], "templates": ["a {}"]}
    folder = tmp_path / "texts"

    def texts_of(model: LoadedModel) -> tuple[int, Tensor]:
        cache = TextCache(folder)
        found = judged(model, dataset, asked, "colour", cache=cache)
        return cache.found, found.sides["zero_shot"].texts

    computed, first = texts_of(loaded)
    read, again = texts_of(loaded)
    assert (computed, read) == (0, 2)
    assert torch.equal(first, again)
    changed = replace(loaded, model=copy.deepcopy(loaded.model))
    changed.model.visual.conv1.weight.data += 1
    assert texts_of(changed)[0] == 2
    changed.model.text_projection.data += 0.1
    found, other = texts_of(changed)
    assert found == 0
    assert not torch.allclose(first, other)
    # The same weights under another activation, and in another precision, are another model.
    gelu = {**loaded.config, "model_cfg": {**loaded.config["model_cfg"], "quick_gelu": True}}
    assert texts_of(replace(loaded, config=gelu))[0] == 0
    cache = TextCache(folder)
    judged(loaded, dataset, asked, "colour", cache=cache, precision="bf16")
    assert cache.found == 0
    # Where nothing can be kept it is embedded each time.
    (tmp_path / "file").write_text("")
    nowhere = TextCache(tmp_path / "file")
    for _ in range(2):
        assert judged(loaded, dataset, asked, "colour", cache=nowhere).result["samples"] == 3
    assert nowhere.found == 0
    # A damaged file is embedded again.
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert texts_of(loaded)[0] == 0
