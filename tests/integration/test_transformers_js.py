"""An export for transformers.js, used by the real library: in node, and in a browser by the page that it brings."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipstill
from clip_models import create_student, load_model, save_model
from distill.export import FORMATS

pytestmark = pytest.mark.long

LABELS = ["cat", "dog", "zebra crossing"]
CAPTIONS = ["a cat", "Two DOGS & 3 foxes' tails", "", "long " * 60, "crème brûlée 🍮"]
DTYPES = ["fp32", "fp16", "q8", "int8", "uint8", "q4"]
LIBRARY = "@huggingface/transformers"

PROGRAM = f"""
import {{ pipeline, env, AutoTokenizer, AutoProcessor, RawImage,
         CLIPTextModelWithProjection, CLIPVisionModelWithProjection }} from "{LIBRARY}";
const {{ folder, name, picture, labels, captions, dtypes }} = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = folder + "/";
const found = {{}};
for (const dtype of dtypes) {{
  const classify = await pipeline("zero-shot-image-classification", name, {{ dtype }});
  found[dtype] = await classify(picture, labels, {{ hypothesis_template: "a photo of a {{}}" }});
}}
const tokens = (await AutoTokenizer.from_pretrained(name))(captions, {{ padding: true, truncation: true }});
const texts = await CLIPTextModelWithProjection.from_pretrained(name, {{ dtype: "fp32" }});
found.texts = (await texts(tokens)).text_embeds.tolist();
const pixels = await (await AutoProcessor.from_pretrained(name))(await RawImage.read(picture));
const images = await CLIPVisionModelWithProjection.from_pretrained(name, {{ dtype: "fp32" }});
found.image = (await images(pixels)).image_embeds.tolist();
console.log(JSON.stringify(found));
"""

HARNESS = """<!doctype html>
<iframe src="try.html" width="860" height="900" style="border: 0"></iframe><img src="wait">
<script>
const tell = (said) => fetch("result", { method: "POST", body: JSON.stringify(said) });
document.querySelector("iframe").onload = async (event) => {
  const page = event.target.contentDocument, state = page.getElementById("state");
  const settled = (wanted) => new Promise((done) => {
    const look = () => {
      if (state.className === "fault") { tell({ fault: state.textContent }); return; }
      wanted(state.textContent) ? done() : setTimeout(look, 50);
    };
    look();
  });
  await settled((text) => text.startsWith("Drop"));
  page.getElementById("labels").value = "cat, dog, zebra crossing";
  const file = new File([await (await fetch("picture.png")).blob()], "picture.png", { type: "image/png" });
  const data = new DataTransfer();
  data.items.add(file);
  page.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
  await settled((text) => text.endsWith("in this browser."));
  const rows = [...page.querySelectorAll("#found tr")];
  tell(rows.map((row) => [...row.cells].slice(0, 2).map((cell) => cell.textContent)));
};
</script>
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an npm project that has the library; else the tests are left out, and say why."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed, and {LIBRARY} runs on it")
    folder = tmp_path_factory.mktemp("npm")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    # Scripts would fetch CUDA's libraries; those for the CPU are in the package.
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"{LIBRARY}@4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{LIBRARY} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model whose weights show in the embeddings; with a picture beside it."""
    folder = tmp_path_factory.mktemp("student")
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
    }
    (folder / "config.json").write_text(json.dumps(config))
    model, full = create_student(str(folder / "config.json"), 2)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if key != "logit_scale":
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    save_model(model, full, str(folder / "model"))
    FORMATS["transformers_js"](load_model(str(folder / "model")), str(folder / "student"))
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    # At the model's own size: libraries resize in ways of their own.
    Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC).save(folder / "student" / "picture.png")
    return folder / "student"


def test_transformers_js_computes_what_the_student_does(modules: Path, export: Path) -> None:
    (modules / "use.mjs").write_text(PROGRAM)
    asked = {
        "folder": str(export.parent),
        "name": export.name,
        "picture": str(export / "picture.png"),
        "labels": LABELS,
        "captions": CAPTIONS,
        "dtypes": DTYPES,
    }
    command = ["node", "use.mjs", json.dumps(asked)]
    done = subprocess.run(command, cwd=modules, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    student = clipstill.load(export.parent / "model", "cpu")
    np.testing.assert_allclose(found["texts"], student.embed_texts(CAPTIONS), atol=1e-4)
    np.testing.assert_allclose(found["image"][0], student.embed_images(export / "picture.png"), atol=1e-4)
    wanted = student.classify(export / "picture.png", LABELS)
    for dtype, least in zip(DTYPES, (1e-3, 0.01, 0.05, 0.05, 0.05, 0.3), strict=True):
        shares = {one["label"]: one["score"] for one in found[dtype]}
        assert shares == pytest.approx(wanted, abs=least), dtype


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; `wait` is not answered before `result` was posted."""

    told: threading.Event
    said: list[Any]

    def do_GET(self) -> None:
        if self.path.endswith("/wait"):
            self.told.wait()
        super().do_GET()

    def do_POST(self) -> None:
        self.said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.told.set()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(modules: Path, export: Path, tmp_path: Path) -> Iterator[tuple[str, list[Any]]]:
    """The address of the export with the library beside its page, and what is posted there."""
    folder = tmp_path / "served"
    shutil.copytree(export, folder)
    (folder / "runtime").mkdir()
    shutil.copy(modules / "node_modules" / LIBRARY / "dist" / "transformers.min.js", folder / "runtime")
    for path in (modules / "node_modules" / "onnxruntime-web" / "dist").glob("ort-wasm*"):
        shutil.copy(path, folder / "runtime")
    (folder / "harness.html").write_text(HARNESS)
    kind = type("Handler", (_Handler,), {"told": threading.Event(), "said": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", kind.said  # type: ignore[attr-defined]
        kind.told.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def test_a_picture_dropped_on_the_page_is_classified(
    served: tuple[str, list[Any]], export: Path, tmp_path: Path
) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed to open the page in")
    address, said = served
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,950"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"]
    done = subprocess.run(
        [*command, f"{address}/harness.html"], capture_output=True, text=True, check=False, timeout=240
    )
    assert len(said) == 1, done.stderr
    wanted = clipstill.load(export.parent / "model", "cpu").classify(export / "picture.png", LABELS)
    assert isinstance(said[0], list), said
    assert [name for name, _ in said[0]] == list(wanted)
    for (_, share), expected in zip(said[0], wanted.values(), strict=True):
        # Eight bits, and the browser's own decoding.
        assert float(share.removesuffix(" %")) == pytest.approx(100 * expected, abs=5)
    assert (tmp_path / "page.png").stat().st_size > 10_000
