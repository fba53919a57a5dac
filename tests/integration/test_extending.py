"""The examples of docs/extending.md, applied to a copy of the code and used there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "extending.md"
PACKAGES = ("clip_models", "clipstill", "demo", "distill", "evaluation", "ingest", "shards", "teacher_cache")
BLOCK = re.compile(r"^```(python|diff) (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

USES = {
    "A loss": """
        import torch
        from distill.losses import LOSSES, Embeddings, LossShape
        from distill.settings import LossTerm

        term = LossTerm(weight=2.0, options={"power": 2.0})
        term.check("cosine")
        ours, theirs = (Embeddings(torch.eye(2), torch.eye(2)[[0, second]], 1.0) for second in (1, 0))
        value = LOSSES["cosine"](LossShape(2, (2,)), **term.options)(ours, [theirs])
        assert value == 0.25, value
        assert "affinity, contrastive, cosine" in ", ".join(sorted(LOSSES))
        assert "cosine" in told("distill --help")
        """,
    "A precision": """
        import torch
        from clip_models import autocast
        from distill.settings import RunSettings

        settings = RunSettings(shards="s", out="o", student="x", steps=1, precision="tf32")
        before = torch.get_float32_matmul_precision()
        with autocast(torch.device("cpu"), settings.precision):
            assert torch.get_float32_matmul_precision() == "high" != before
        assert torch.get_float32_matmul_precision() == before
        assert "tf32" in told("distill --help") and "tf32" in told("cache build --help")
        """,
    "An export format": """
        import json
        from pathlib import Path
        from clip_models import create_student, load_model, save_model
        from clipstill.main import main

        text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
        Path("tiny.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
        save_model(*create_student("tiny.json", 0), "tiny")
        assert main(["export", "tiny", "--format", "npz", "--out", "given"]) == 0
        assert 'weights = numpy.load("weights.npz")' in Path("given/README.md").read_text()
        assert "npz: numpy's arrays" in told("export --help")
        """,
    "A published list": """
        import pyarrow as pa, pyarrow.parquet as pq
        from ingest import SourceSettings
        from ingest.sources import Source

        columns = {"url": ["http://a/1"], "text": ["a cat"], "clip_similarity_vitb32": [0.5], "width": [9]}
        pq.write_table(pa.table(columns), "coyo.parquet")
        (row,) = pa.concat_tables(Source(SourceSettings(paths=("coyo.parquet",), format="coyo")).tables()).to_pylist()
        assert (row["caption"], row["similarity"], row["listed_width"]) == ("a cat", 0.5, 9), row
        assert "coyo" in told("ingest --help")
        """,
    "A kind of file": """
        import pyarrow as pa, pyarrow.feather as feather
        from ingest import SourceSettings
        from ingest.sources import Source

        feather.write_feather(pa.table({"url": ["http://a/1", "http://a/2"], "caption": ["x", "y"]}), "list.feather")
        rows = pa.concat_tables(Source(SourceSettings(paths=("list.feather",))).tables()).to_pylist()
        assert [(row["url"], row["caption"]) for row in rows] == [("http://a/1", "x"), ("http://a/2", "y")]
        assert "feather" in told("ingest --help")
        """,
    "A kind of teacher": """
        import torch
        from teacher_cache.teachers import load_teacher

        pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
        one, same, other = (load_teacher(f"random:{seed}") for seed in (7, 7, 8))
        assert torch.equal(one.embed_images(pixels), same.embed_images(pixels))
        assert not torch.equal(one.embed_images(pixels), other.embed_images(pixels))
        assert one.identity == same.identity != other.identity
        assert one.embed_texts(["a", "b"]).norm(dim=1).sub(1).abs().max() < 1e-6
        assert "random:SEED" in told("cache build --help")
        """,
    "An operation on views": """
        import numpy as np
        from teacher_cache.views import Operation, View, ViewPolicy, photometric

        view = View(0.0, 0.0, 1.0, 1.0, False, None, (Operation("Invert", 0.0),))
        policy = ViewPolicy(rand_augment=(1, 9))
        assert policy.unpack_all(policy.pack([view])) == [view]
        pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        assert (photometric.apply(pixels, None, view.operations) == 255 - pixels).all()
        """,
    "A kind of evaluation set": """
        import json
        from pathlib import Path
        from PIL import Image
        from evaluation.sets import SetSettings, open_set

        Path("listed").mkdir()
        for at in range(3):
            Image.new("RGB", (8, 8), (at, 0, 0)).save(f"listed/{at}.png")
        Path("listed/labels.txt").write_text("2.png\\tdog\\n0.png\\tcat\\n1.png\\tdog\\n")
        Path("t.json").write_text(json.dumps({"templates": ["a {}"]}))
        found = open_set("listed", SetSettings(classes="t.json"))
        task = found.tasks["zero_shot"]
        assert (task.prompts.names, task.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
        assert found.images.open(0).getpixel((0, 0)) == (2, 0, 0)
        """,
    "An option of `ingest`": """
        from clipstill.main import build_parser
        from clipstill.options import given
        from ingest.settings import IngestSettings
        from shards.settings import make

        line = "ingest list.csv --name a --out o --interface 10.0.0.7"
        settings = make(IngestSettings, given(build_parser().parse_args(line.split()), IngestSettings))
        assert settings.network.interface == "10.0.0.7"
        assert "--interface ADDRESS" in told("ingest --help") and "--interface" in told("ingest retry --help")
        """,
}
ALLOWED = {"A published list": 1, "An operation on views": 1, "An option of `ingest`": 1}
"""How many files an addition may touch, where it is not two."""

TOLD = """
import contextlib, io
from clipstill.main import main

def told(line):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(line.split())
    return " ".join(out.getvalue().split())
"""


def examples() -> dict[str, list[tuple[str, str, str]]]:
    """Section of the document → its blocks: what it is, which file, its lines."""
    sections = re.split(r"^## (.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    return {title: BLOCK.findall(text) for title, text in zip(sections[::2], sections[1::2], strict=True)}


def apply(kind: str, path: Path, text: str) -> None:
    if kind == "python":
        assert not path.exists()
        path.write_text(text)
        return
    lines = text.splitlines()
    there = "\n".join(line[1:] for line in lines if line[0] == " ")
    whole = path.read_text()
    assert whole.count(there) == 1, (path, there)
    path.write_text(whole.replace(there, "\n".join(line[1:] for line in lines)))


def test_each_addition_touches_as_few_files_as_is_said() -> None:
    touched = defaultdict(set)
    for title, blocks in examples().items():
        touched[title] |= {path for _, path, _ in blocks}
    assert {title: len(paths) for title, paths in touched.items()} == {title: ALLOWED.get(title, 2) for title in USES}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with all examples applied."""
    copy = tmp_path_factory.mktemp("extended")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for blocks in examples().values():
        for kind, path, text in blocks:
            apply(kind, copy / path, text)
    return copy


def test_each_addition_works(extended: Path, tmp_path: Path) -> None:
    """All in one process, so that torch is imported once."""
    parts = [TOLD]
    for title, use in USES.items():
        lines = [line.removeprefix(" " * 8) for line in use.strip("\n").splitlines()]
        body = "\n".join(f"    {line}" for line in lines)
        parts.append(f"def use():\n{body}\n\nuse()\nprint({title!r}, 'works', flush=True)\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(parts)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(extended)},
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith("works")] == [f"{title} works" for title in USES]
