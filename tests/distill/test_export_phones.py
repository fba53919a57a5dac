"""Exports for phones, where the packages for them are installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clip_models import create_student, load_model, save_model
from distill.export import FORMATS

pytestmark = pytest.mark.long


@pytest.fixture
def model(tmp_path: Path, save_student: Any) -> str:
    made, full = create_student(save_student(tmp_path / "student.json"), 2)
    save_model(made, full, str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_core_ml_is_converted_and_the_card_says_where_it_was_compared(model: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    # In a process of its own: what warns there is third parties' business.
    program = (
        "import sys, coremltools; from clip_models import load_model; from distill.export import FORMATS\n"
        f"FORMATS['coreml'](load_model({model!r}), 'out')\n"
        "for name in ('image', 'text'):\n"
        "    described = coremltools.models.MLModel(f'out/{name}_encoder.mlpackage').get_spec().description\n"
        "    (taken,), (given,) = described.input, described.output\n"
        "    print(taken.name, list(taken.type.multiArrayType.shape), given.name)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["image [1, 3, 32, 32] embedding", "prompt [1, 16] embedding"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("Core ML computes on macOS alone" in card) == (sys.platform != "darwin")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["preprocess_cfg"]["mean"]
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_executorch_computes_what_the_student_does(model: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    program = (
        "import clipstill, numpy; from clip_models import load_model; from distill.export import FORMATS\n"
        f"measured = FORMATS['executorch'](load_model({model!r}), 'out')\n"
        "texts = ['a cat', 'crème brûlée 🍮']\n"
        f"rows = [clipstill.load(name, 'cpu').embed_texts(texts) for name in ('out', {model!r})]\n"
        "print(max(measured.values()), numpy.abs(rows[0] - rows[1]).max())\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured, differing = map(float, done.stdout.splitlines()[-1].split())
    assert measured < 1e-3
    assert differing < 1e-5


@pytest.mark.parametrize(("name", "package"), [("coreml", "coremltools"), ("executorch", "executorch")])
def test_without_its_package_a_format_says_how_to_get_it(model: str, tmp_path: Path, name: str, package: str) -> None:
    if FORMATS[name].is_installed:
        pytest.skip(f"{package} is installed")
    with pytest.raises(
        Exception, match=re.escape(f"{package} is not installed. Run `pip install 'clipstill[{name}]'`")
    ):
        FORMATS[name](load_model(model), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
