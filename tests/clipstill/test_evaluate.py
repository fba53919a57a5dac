"""`clipstill evaluate` prints what evaluation finds, in digits that mean something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clip_models import load_model
from clipstill.main import main
from evaluation import evaluate, open_set


@pytest.mark.usefixtures("one_thread")
def test_numbers_are_printed_to_four_decimals(
    make_dataset: Any, save_teacher: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sevenths, which never end."""
    data = make_dataset(tmp_path / "data", [7])
    teacher = save_teacher(tmp_path / "teacher", scale=30.0)
    assert main(["evaluate", teacher, "--on", str(data.folder)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)["models"][teacher][str(data.folder)]
    whole = evaluate(load_model(teacher), open_set(str(data.folder))).result
    assert found["samples"] == 7
    assert "zero_shot" not in found
    assert max(len(digits) for digits in re.findall(r"\.(\d+)", printed)) == 4
    assert found["retrieval"]["shared_captions"] == whole["retrieval"]["shared_captions"] == 0
    for way in ("image_to_text", "text_to_image"):
        numbers = whole["retrieval"][way]
        assert found["retrieval"][way] == pytest.approx(numbers, abs=5e-5, rel=0)
        assert found["retrieval"][way].keys() == numbers.keys()
