"""The model card: it tells of the run, and its lines of Python work as they stand."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clip_models import create_student, load_model, save_model
from distill.export import FORMATS
from distill.settings import EvaluationSettings
from distill.train import train

TEXTS = ["a photo of a cat", "a photo of a dog"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    Image.radial_gradient("L").convert("RGB").resize((96, 64)).save(path)
    return path


@pytest.fixture(scope="module")
def finished(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps with evaluations, and the best kept."""
    out = tmp_path_factory.mktemp("card") / "run"
    evaluation = EvaluationSettings(shards=world.shards, every=2, best="eval/retrieval/image_to_text/R@5")
    train(world.settings(out, evaluation=evaluation, steps=4, log_every=1, recipe="my-recipe"))
    return out


def python_in(card: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(found)


def run_snippet(folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that its lines leave."""
    shutil.copy(picture, folder / "picture.jpg")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(python_in((folder / "README.md").read_text()), "card", "exec"), names)
    return names


@torch.no_grad()
def expected(spec: str, picture: Path) -> torch.Tensor:
    loaded = load_model(spec)
    image = loaded.model.encode_image(loaded.preprocess(Image.open(picture))[None], normalize=True)
    texts = loaded.model.encode_text(loaded.tokenizer(TEXTS), normalize=True)
    return (loaded.model.logit_scale.exp() * image @ texts.T).softmax(dim=1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_the_cards_python_computes_what_the_model_does(
    finished: Path, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec = str(finished / "model")
    FORMATS[name](load_model(spec), str(tmp_path / "out"))
    found = run_snippet(tmp_path / "out", picture, monkeypatch)
    # transformers' default image processor rounds pixels differently.
    probabilities = found["probabilities"]
    tolerance = 1e-3 if name == "transformers" else 1e-5
    torch.testing.assert_close(probabilities, expected(spec, picture), atol=tolerance, rtol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
@pytest.mark.parametrize("case", ["torchscript squash", "torchscript longest", "onnx longest", "safetensors squash"])
def test_without_text_tower_and_with_other_preprocessing_it_works_too(
    world: Any, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, resize_mode = case.split()
    model, config = create_student(world.student, 0, ("image",))
    config["preprocess_cfg"] |= {"resize_mode": resize_mode, "interpolation": "bilinear"}
    save_model(model, config, str(tmp_path / "model"))
    loaded = load_model(str(tmp_path / "model"))
    FORMATS[name](loaded, str(tmp_path / "out"))
    found = run_snippet(tmp_path / "out", picture, monkeypatch)
    with torch.no_grad():
        image = loaded.model.encode_image(loaded.preprocess(Image.open(picture))[None], normalize=True)
        wanted = (loaded.model.logit_scale.exp() * image @ found["texts"].T).softmax(dim=1)
    torch.testing.assert_close(found["probabilities"], wanted, atol=1e-5, rtol=0)
    assert "meets text embeddings" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_tells_of_data_teachers_settings_and_results(finished: Path, world: Any, tmp_path: Path) -> None:
    FORMATS["safetensors"](load_model(str(finished / "model")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    settings = json.loads((finished / "settings.json").read_text())
    facts = settings["facts"]
    for told in (
        f"26 samples, content {world.dataset.content}",
        world.dataset.name,
        facts["teachers"][0]["fingerprint"],
        "| 30 |",
        '"affinity": {',
        '"lr": 0.003',
        '"batch_size": 6',
        f"torch {facts['versions']['torch']}",
    ):
        assert told in card
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == 4 and any(name.startswith("eval/") for name in line)]
    for name, value in last.items():
        if name.startswith("eval/"):
            assert f"| {name.removeprefix('eval/')} | {value:.4g} |" in card
    # The folders of this machine are nobody's business.
    assert "| recipe | my-recipe |" in card
    assert str(world.root) not in card
    assert str(finished.parent) not in card


def test_the_best_models_card_has_the_results_of_its_step(finished: Path, tmp_path: Path) -> None:
    best = json.loads((finished / "done.json").read_text())["best"]
    FORMATS["safetensors"](load_model(str(finished / "best")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"after {best['step']} steps. The step was chosen by `{best['metric']}`" in card
    assert f"| {best['metric'].removeprefix('eval/')} | {best['value']:.4g} |" in card


def test_a_model_without_a_run_has_a_card_that_says_so(world: Any, tmp_path: Path) -> None:
    FORMATS["open_clip"](load_model(world.teacher), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: open_clip\n")
    assert "How it was trained is not known" in card
    assert str(world.root) not in card


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(picture: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(picture.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{picture.name}"
        server.shutdown()
        thread.join()


def test_the_lines_of_tinyclips_model_card_work_on_a_transformers_export(
    finished: Path, tmp_path: Path, address: str, picture: Path
) -> None:
    """Line by line as that card has it, but for the name of the model and the picture's address."""
    import requests  # noqa: PLC0415
    from transformers import CLIPModel, CLIPProcessor  # noqa: PLC0415

    FORMATS["transformers"](load_model(str(finished / "model")), str(tmp_path / "out"))

    model = CLIPModel.from_pretrained(str(tmp_path / "out"))
    processor = CLIPProcessor.from_pretrained(str(tmp_path / "out"))
    image = Image.open(requests.get(address, stream=True).raw)
    inputs = processor(text=["a photo of a cat", "a photo of a dog"], images=image, return_tensors="pt", padding=True)
    outputs = model(**inputs)
    logits_per_image = outputs.logits_per_image
    probs = logits_per_image.softmax(dim=1)

    torch.testing.assert_close(probs.detach(), expected(str(finished / "model"), picture), atol=1e-3, rtol=0)
