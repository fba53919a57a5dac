"""`clipstill evaluate` prints what evaluation finds, in digits that mean something."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_models import load_model
from clipstill.main import main
from evaluation import evaluate, open_set
from tests.evaluation.test_sets import NAMES, labelled, wds


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


@pytest.mark.usefixtures("one_thread")
def test_students_beside_their_teacher(
    save_teacher: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agreement, gains and losses by class from each one's own answers; seeds' mean; the first against the second."""
    monkeypatch.setenv("CLIPSTILL_CACHE", str(tmp_path / "cache"))
    labels = [at % 3 for at in range(30)]
    pets = str(wds(tmp_path / "wds_pets", labelled(labels), **NAMES))
    names = [save_teacher(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two", "teacher"))]
    assert main(["evaluate", *names[:2], "--on", pets, "--teacher", names[2]]) == 0
    found = json.loads(capsys.readouterr().out)
    chosen = []
    for name in names:
        sides = evaluate(load_model(name), open_set(pets)).sides["zero_shot"]
        chosen.append((sides.images @ sides.texts.T).argmax(dim=1).numpy())
    truth = np.array(labels)
    for student, said in zip(names[:2], chosen, strict=False):
        told = found["models"][student][pets]["teacher"]["zero_shot"]
        assert told["agreement"] == pytest.approx(100 * np.mean(said == chosen[2]), abs=1e-4)
        won, lost = (said == truth) & (chosen[2] != truth), (said != truth) & (chosen[2] == truth)
        assert (told["gained"], told["lost"]) == (won.sum(), lost.sum())
        by_class = {row["class"]: (row["gained"], row["lost"]) for row in told["by_class"]}
        for number, name in enumerate(("cat", "small dog", "fox")):
            of = truth == number
            assert by_class.get(name, (0, 0)) == (won[of].sum(), lost[of].sum())
        assert -1 <= told["rank_correlation"] <= 1
    top1 = [100 * np.mean(said == truth) for said in chosen]
    spread = found["spread"][pets]["zero_shot/top1"]
    assert spread["mean"] == pytest.approx(np.mean(top1[:2]), abs=1e-4)
    apart = found["differences"][pets][names[1]]["zero_shot/top1"]
    assert apart["difference"] == pytest.approx(top1[1] - top1[0], abs=1e-4)
    assert found["teacher"][pets]["zero_shot"]["top1"] == pytest.approx(top1[2], abs=1e-4)
    low, high = found["models"][names[0]][pets]["intervals"]["zero_shot/top1"]
    assert low <= top1[0] <= high


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--on", "pets", "--label", "kind"], "--label was given, but no classes"),
        (["--on", "pets", "--on", "pets"], "--on: pets is given twice"),
        (["--on", "pets", "--protocol", "clip-kd"], "--protocol clip-kd would be ignored"),
        (["--on", "pets", "--no-retrieval"], "--no-retrieval would be ignored"),
        (["--on", "pets", "--root", "pets"], "--root would be ignored without a suite"),
        (["--on", "pets", "--beside", "x.csv"], "--beside would be ignored without a suite"),
        ([], "there is nothing to evaluate on"),
        (["--suite", "mobileclip", "--root", "empty"], "none of the suite's 38 sets lies there"),
        (["--on", "pets", "--suite", "mobileclip", "--beside", "x.csv"], "x.csv: there is no such file"),
        (["--on", "pets", "--out", "pets"], "no evaluation can be made here"),
    ],
)
def test_what_would_be_ignored_or_fail_is_refused(
    *,
    save_teacher: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    wds(tmp_path / "pets", labelled([0, 1, 2]), **NAMES)
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", save_teacher(tmp_path / "model"), *words]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
