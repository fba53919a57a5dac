"""Datasets without captions, or with equal ones: what cannot be learned is refused, what is easy is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from shards import write_dataset
from tests.conftest import small_samples

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, save_teacher: Any) -> str:
    return str(save_teacher(tmp_path_factory.mktemp("model") / "teacher"))


def caption(data: Any, captions: list[str]) -> list[tuple[bytes, str, str]]:
    """Some samples with these captions."""
    return [(image, extension, text) for (image, extension, _), text in zip(data, captions, strict=True)]


@pytest.fixture
def uncaptioned(tmp_path: Path) -> str:
    """As a list without captions becomes: every caption is empty, and dataset.json says so."""
    rows = [
        (f"bare-{at}", image, "", {"kind": ("even", "odd")[at % 2]})
        for at, (image, _, _) in enumerate(small_samples(12, 3))
    ]
    write_dataset(tmp_path / "bare", rows, name="bare")
    path = tmp_path / "bare" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "captioned": False}))
    return str(tmp_path / "bare")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert shown.out == ""
    return line


@pytest.mark.parametrize("command", ["build", "plan"])
def test_the_captions_that_a_dataset_lacks_are_not_embedded(
    uncaptioned: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = ["--out", str(tmp_path / "cache")] if command == "build" else []
    line = refused(["cache", command, uncaptioned, "--teacher", teacher, *out, "--in-process"], capsys)
    assert "has no captions" in line
    assert "--towers image" in line
    assert not (tmp_path / "cache").exists()


def test_its_images_are(uncaptioned: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = str(tmp_path / "cache")
    build = ["cache", "build", uncaptioned, "--teacher", teacher, "--out", cache, "--in-process", "--views", "1"]
    assert main([*build, "--towers", "image"]) == 0
    assert main(["cache", "verify", uncaptioned, "--cache", cache]) == 0
    assert "sound" in capsys.readouterr().out


def test_no_student_is_trained_on_captions_that_are_not_there(
    uncaptioned: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = refused(
        ["distill", uncaptioned, "--student", teacher, "--steps", "1", "--batch-size", "4", "--out", str(out)], capsys
    )
    assert "has no captions" in line
    assert "table:" in line
    assert not out.exists()


def test_nothing_is_retrieved_where_there_are_no_captions_and_classes_are_told_apart(
    uncaptioned: str,
    teacher: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = refused(["evaluate", teacher, "--on", uncaptioned], capsys)
    assert "has no captions" in line
    assert "--classes" in line
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"classes": ["even", "odd"], "templates": ["a {}"]}))
    assert main(["evaluate", teacher, "--on", uncaptioned, "--classes", str(classes), "--label", "kind"]) == 0
    found = json.loads(capsys.readouterr().out)["models"][teacher][uncaptioned]
    assert "retrieval" not in found
    assert 0 <= found["zero_shot"]["top1"] <= 100.0
    assert "no retrieval" in caplog.text


def test_a_run_is_not_evaluated_on_captions_that_are_not_there(
    uncaptioned: str, teacher: str, tmp_path: Path, make_dataset: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "data", [8])
    out = tmp_path / "run"
    run = ["distill", str(tmp_path / "data"), "--student", teacher, "--steps", "1", "--batch-size", "4"]
    line = refused([*run, "--out", str(out), "--eval", uncaptioned], capsys)
    assert "has no captions" in line
    assert not out.exists()


def test_equal_captions_that_count_as_hits_are_stated(
    teacher: str,
    tmp_path: Path,
    make_dataset: Any,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three say "a", two say "b" and one stands alone: five of six have more than one right answer."""
    data = str(tmp_path / "data")
    make_dataset(data, samples=[caption(small_samples(6, 4), ["a", "b", "a", "c", "b", "a"])])
    assert main(["evaluate", teacher, "--on", data]) == 0
    assert json.loads(capsys.readouterr().out)["models"][teacher][data]["retrieval"]["shared_captions"] == 5
    assert "5 of 6 samples share their caption" in caplog.text
    caplog.clear()
    out = tmp_path / "run"
    run = ["distill", data, "--student", teacher, "--steps", "1", "--batch-size", "4", "--warmup", "0"]
    assert main([*run, "--out", str(out), "--eval", data]) == 0
    assert "5 of 6 samples share their caption" in caplog.text
    (event,) = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    assert (event["step"], event["kind"]) == (0, "evaluation")
    assert "5 of 6 samples" in event["text"]
