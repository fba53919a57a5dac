"""`clipstill evaluate` prints what evaluation finds, in digits that mean something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from clip_models import load_model
from clipstill.main import main
from evaluation import evaluate
from shards import Dataset


@pytest.mark.usefixtures("one_thread")
def test_numbers_are_printed_to_four_decimals(
    make_dataset: Any, save_teacher: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sevenths, which never end."""
    data = make_dataset(tmp_path / "data", [7])
    teacher = save_teacher(tmp_path / "teacher", scale=30.0)
    assert main(["evaluate", teacher, str(tmp_path / "data")]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    whole = evaluate(
        load_model(teacher),
        Dataset.open(str(data.folder)),
        classes=None,
        templates=(),
        label_field=None,
        batch_size=64,
        device="cpu",
    )
    assert (found["samples"], found["zero_shot"]) == (7, None)
    assert max(len(digits) for digits in re.findall(r"\.(\d+)", printed)) == 4
    assert found["retrieval"].pop("shared_captions") == whole["retrieval"].pop("shared_captions") == 0
    for way, numbers in whole["retrieval"].items():
        assert found["retrieval"][way] == pytest.approx(numbers, abs=5e-5, rel=0)
        assert found["retrieval"][way].keys() == numbers.keys()
