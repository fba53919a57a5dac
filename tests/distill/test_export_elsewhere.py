"""Exports for places without torch: 8 bits calibrated on a dataset, Immich, torch.export, and the hub."""

from __future__ import annotations

import base64
import http.server
import json
import re
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from clip_models import create_student, load_model, save_model
from clipstill.main import main
from distill.export import FORMATS
from distill.export.pairs import recalled

CAPTIONS = ["a cat", "Two DOGS & 3 foxes' tails", "", "long " * 60, "crème brûlée 🍮"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, save_student: Any) -> Path:
    """A tiny model whose weights are large enough to show in the embeddings."""
    folder = tmp_path_factory.mktemp("elsewhere")
    made, full = create_student(save_student(folder / "student.json", width=64), 2)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for key, tensor in made.named_parameters():
            if key != "logit_scale":
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    save_model(made, full, str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, make_dataset: Any) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "data"
    make_dataset(folder, [40, 40])
    return Path(folder)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_eight_bits_are_stated_with_what_they_lose_and_win(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = f"export {model} --format onnx --out {out} --calibrate {data} --most-loss 100"
    assert main(line.split()) == 0
    assert (out / "image_encoder_int8.onnx").stat().st_size < (out / "image_encoder.onnx").stat().st_size
    pixels = np.random.default_rng(0).normal(size=(9, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        wanted = load_model(str(model)).model.encode_image(torch.from_numpy(pixels), normalize=True).numpy()
    (rows,) = onnxruntime.InferenceSession(out / "image_encoder_int8.onnx").run(None, {"images": pixels})
    # Noise is nothing like the pictures it was calibrated on.
    assert (rows * wanted).sum(axis=1).min() > 0.9
    assert np.abs(rows - wanted).max() > 1e-4
    card = card_of(out)
    (said,) = re.findall(r"\| int8 \| ([\d.]+) \| ([\d.]+), ([\d.]+) \| ([\d.]+), ([\d.]+) \| [\d.]+ \(", card)
    assert float(said[0]) == pytest.approx(
        sum(path.stat().st_size for path in out.glob("*_int8.onnx")) / 1e6, abs=0.005
    )
    assert 0.99 < float(said[1]) < 1
    assert re.search(r"calibrated on \d+ other pairs of it", card)


def test_eight_bits_that_lose_too_much_are_refused_with_the_figures(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([50.0, 40.0])
    monkeypatch.setattr("distill.export.small.recalled", lambda *_: next(scores))
    line = f"export {model} --format onnx --out {tmp_path / 'out'} --calibrate {data}"
    assert main(line.split()) == 2
    assert re.search(
        r"R@1 falls from 50\.00 to 40\.00 % on \d+ pairs, more than 1 points.*MB.*--most-loss", capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_recall_counts_pairs_that_are_nearest_to_each_other() -> None:
    images = np.eye(4, dtype=np.float32)
    assert recalled(images, images) == 100
    # Two texts swapped: half of the pairs are right, either way.
    assert recalled(images, images[[1, 0, 2, 3]]) == 50
    # All alike: nothing tells a pair's own from others.
    assert recalled(np.ones((4, 4)), np.ones((4, 4))) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--format safetensors --calibrate {data}", "--calibrate says nothing of the format safetensors"),
        ("--format onnx --most-loss 1", "--most-loss was given without --calibrate"),
        ("--format onnx --calibrate {data} --most-loss -1", "--most-loss is -1"),
        ("--format onnx --calibrate nowhere", "nowhere: no dataset here"),
        ("--license Apache", "'Apache' is no licence's identifier"),
        ("--push-to-hub mine", "mine: this is no repository's name"),
        ("--push-to-hub a/b", "a/b: there is no token in $HF_TOKEN"),
    ],
)
def test_options_that_cannot_be_met_are_told_before_the_work(  # noqa: PLR0917
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, says: str
) -> None:
    line = f"export {model} --out {tmp_path / 'out'} {options.format(data=data)}"
    assert main(line.split()) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_immich_finds_what_it_looks_for(model: Path, tmp_path: Path) -> None:
    """Read as its machine-learning service does: settings, pad token, int32 ids, one at a time."""
    out = tmp_path / "out"
    FORMATS["immich"](load_model(str(model)), str(out))
    text_cfg = json.loads((out / "config.json").read_text())["text_cfg"]
    pad = json.loads((out / "textual" / "tokenizer_config.json").read_text())["pad_token"]
    tokenizer = Tokenizer.from_file(str(out / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=text_cfg["context_length"], pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=text_cfg["context_length"])
    settings = json.loads((out / "visual" / "preprocess_cfg.json").read_text())
    assert {"size", "mean", "std", "interpolation", "resize_mode"} <= settings.keys()
    textual = onnxruntime.InferenceSession(out / "textual" / "model.onnx")
    visual = onnxruntime.InferenceSession(out / "visual" / "model.onnx")
    for session, kind, shape in ((textual, "int32", [1, 16]), (visual, "float", [1, 3, 32, 32])):
        (taken,) = session.get_inputs()
        assert (taken.name, taken.type, taken.shape) == (
            "text" if kind == "int32" else "image",
            f"tensor({kind})",
            shape,
        )
        assert [one.name for one in session.get_outputs()] == ["embedding"]
    loaded = load_model(str(model))
    with torch.no_grad():
        texts = loaded.model.encode_text(loaded.tokenizer(CAPTIONS), normalize=True).numpy()
        pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        image = loaded.model.encode_image(pixels, normalize=True).numpy()
    for caption, wanted in zip(CAPTIONS, texts, strict=True):
        ids = np.array([tokenizer.encode(" ".join(caption.split())).ids], np.int32)
        np.testing.assert_allclose(textual.run(None, {"text": ids})[0][0], wanted, atol=1e-5)
    np.testing.assert_allclose(visual.run(None, {"image": pixels.numpy()})[0], image, atol=1e-5)


@pytest.mark.parametrize("towers", [("image", "text"), ("image",)])
def test_torch_export_computes_the_same_for_any_batch(tmp_path: Path, save_student: Any, towers: Any) -> None:
    made, full = create_student(save_student(tmp_path / "student.json"), 2, towers)
    save_model(made, full, str(tmp_path / "model"))
    loaded = load_model(str(tmp_path / "model"))
    FORMATS["pt2"](loaded, str(tmp_path / "out"))
    module = torch.export.load(tmp_path / "out" / "image_encoder.pt2").module()
    for count in (1, 3, 7):
        pixels = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            torch.testing.assert_close(module(pixels), loaded.model.encode_image(pixels, normalize=True))
    assert (tmp_path / "out" / "text_encoder.pt2").exists() == ("text" in towers)


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as an upload needs; what comes is kept in `files`."""

    token = "hf_secret"
    files: dict[str, bytes]
    made: list[str]

    def _answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self._answer({"error": "Invalid token"}, 401)
        elif self.path == "/api/whoami-v2":
            self._answer({"name": "me", "type": "user"})
        else:
            self._answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.made.append(json.loads(body)["name"])
            self._answer({"url": f"{self.address}/me/vit", "id": "me/vit"})
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
            )
        elif self.path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            self._answer(
                {"commitUrl": f"{self.address}/me/vit/commit/{'a' * 40}", "commitOid": "a" * 40, "success": True}
            )
        else:
            self._answer({"valid": True})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, Any]]:
    kind = type("Hub", (_Hub,), {"files": {}, "made": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", kind
        server.shutdown()
        thread.join()


def test_an_export_is_pushed_to_the_hub_with_its_card(model: Path, tmp_path: Path, hub: tuple[str, Any]) -> None:
    """By the library, in a process of its own: it reads where the hub is when it is imported."""
    address, kind = hub
    line = f"export {model} --format safetensors --out {tmp_path / 'out'} --license mit --push-to-hub me/vit"
    command = [sys.executable, "-W", "ignore", "-m", "clipstill", *line.split()]
    root = str(Path(__file__).parents[2])
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": root, "HF_ENDPOINT": address, "HOME": str(tmp_path / "home")}

    def pushed(token: str) -> subprocess.CompletedProcess[str]:
        given = {**environment, "HF_TOKEN": token}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=given)

    refused = pushed("hf_wrong")
    assert refused.returncode == 2, refused.stderr
    assert "me/vit: the hub does not take it (401" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = pushed("hf_secret")
    assert done.returncode == 0, done.stderr
    assert f"pushed to {address}/me/vit" in done.stdout
    assert not any("hf_" in said for said in (done.stdout, done.stderr, refused.stdout, refused.stderr))
    assert kind.made == ["vit"]
    there = {str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert kind.files == there
    assert b"\nlicense: mit\n" in kind.files["README.md"]


PLAIN = ["onnx", "transformers_js", "immich"]


@pytest.mark.long
def test_the_cards_lines_run_where_only_four_packages_are(model: Path, tmp_path: Path) -> None:
    """onnxruntime, numpy, pillow and tokenizers, in an environment of their own."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", "pillow", "tokenizers"]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"the packages cannot be installed: {installed.stderr.strip().splitlines()[-1:]}")
    loaded = load_model(str(model))
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((70, 45), Image.Resampling.BICUBIC)
    with torch.no_grad():
        image = loaded.model.encode_image(loaded.preprocess(picture)[None], normalize=True)
        texts = loaded.model.encode_text(loaded.tokenizer(["a photo of a cat", "a photo of a dog"]), normalize=True)
        wanted = (loaded.model.logit_scale.exp() * image @ texts.T).softmax(dim=1)
    for name in PLAIN:
        out = tmp_path / name
        FORMATS[name](loaded, str(out))
        picture.save(out / "picture.jpg", "PNG")
        (lines,) = re.findall(r"```python\n(.*?)```", card_of(out), re.DOTALL)
        program = f"{lines}\nprint(probabilities.tolist())"
        done = subprocess.run([python, "-c", program], cwd=out, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, done.stderr)
        torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), wanted, atol=1e-5, rtol=0, msg=name)
