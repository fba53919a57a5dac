"""Figures beside those of CLIP_benchmark itself, on the same model and sets. Needs a package index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_models import load_model
from evaluation import evaluate, open_set
from evaluation.suites.metrics import rows_of
from tests.evaluation import by_clip_benchmark
from tests.evaluation.test_sets import NAMES, npy, png, wds

CLASSES = [f"{colour} {shape}" for colour in ("red", "green", "blue") for shape in ("cat", "dog")]
WORDS = {**NAMES, "classnames": "".join(f"{name}\n" for name in CLASSES)}


@pytest.fixture(scope="module")
def their_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where clip-benchmark and a numpy that it runs with are, before everything else that is installed."""
    place = tmp_path_factory.getbasetemp() / "clip-benchmark"
    if not place.exists():
        options = ["--quiet", "--no-deps", "--python", sys.executable, "--target", str(place)]
        uv = str(Path(sys.executable).with_name("uv"))
        command = [uv, "pip", "install", *options, "clip-benchmark==1.6.*", "numpy==2.3.*", "tqdm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"clip-benchmark cannot be had: {' '.join(done.stderr.split())[-200:]}")
    return place


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One folder of each kind, of 41 images."""
    folder = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(0)
    labels = random.integers(0, len(CLASSES), 41)
    several = random.random((41, len(CLASSES))) < 0.4
    captions = [
        "".join(f"a {random.choice(CLASSES)} {at} {number}\n" for number in range(1 + at % 5)) for at in range(41)
    ]
    images = [png(at, 40) for at in range(41)]
    one = [{"png": image, "cls": str(label).encode()} for image, label in zip(images, labels, strict=True)]
    many = [{"png": image, "npy": npy(row.astype(np.int64))} for image, row in zip(images, several, strict=True)]
    told = [{"png": image, "txt": text.encode()} for image, text in zip(images, captions, strict=True)]
    made = {
        "classes": wds(folder / "wds_one", one, **WORDS),
        "several": wds(folder / "wds_many", many, dataset_type="multilabel", **WORDS),
        "captions": wds(folder / "wds_told", told, dataset_type="retrieval"),
    }
    return {name: str(root) for name, root in made.items()}


@pytest.mark.long
def test_figures_equal_those_of_clip_benchmark(
    their_folder: Path, roots: dict[str, str], save_teacher: Any, tmp_path: Path
) -> None:
    model = save_teacher(tmp_path / "model")
    environment = {**os.environ, "PYTHONPATH": str(their_folder), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(by_clip_benchmark.__file__), model, json.dumps(roots)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert {name: len(figures) for name, figures in theirs.items()} == {"classes": 3, "several": 1, "captions": 6}
    assert sum(0 < value < 1 for figures in theirs.values() for value in figures.values()) >= 8
    loaded = load_model(model)
    for name, root in roots.items():
        (ours,) = rows_of("set", evaluate(loaded, open_set(root), batch_size=7).result).values()
        for figure, value in theirs[name].items():
            assert ours[figure] == pytest.approx(value, abs=1e-6), (name, figure)
