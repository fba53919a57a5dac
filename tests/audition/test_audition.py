"""An audition as a user runs it: tiny teachers and students; what it writes, that it goes on, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from shards import Dataset


@pytest.fixture(scope="module", autouse=True)
def _quiet(one_thread: None) -> None:
    """Every test here computes on one thread."""


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
) -> list[str]:
    """A command without --out: two teachers, two scales, two seeds, three steps each."""
    root = tmp_path_factory.mktemp("stage")
    dataset = make_dataset(root / "shards", (30, 30))
    one, other = save_teacher(root / "one"), save_teacher(root / "other", seed=1, dim=24)
    student = save_student(root / "student.json")
    small = ["--student", student, "--image-size", "16", "--context-length", "8", "--steps", "3", "--batch-size", "8"]
    speakers = ["--teacher", one, "--teacher", other, "--scale", "40,80", "--seeds", "2"]
    return ["cache", "audition", str(dataset.folder), *speakers, *small]


def test_everybody_is_heard_and_the_page_says_who_won(
    stage: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*stage, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    result = json.loads((out / "audition.json").read_text())
    found = {(one["teacher"], one["scale"]): one["figures"] for one in result["candidates"]}
    assert set(found) == {(name, scale) for name in ("one", "other") for scale in (40.0, 80.0)}
    assert all(len(figures) == 2 for figures in found.values())
    means = [one["mean"] for one in result["candidates"]]
    assert means == sorted(means, reverse=True)
    winner = f"{result['winner']['teacher']} at {result['winner']['scale']:g}"
    assert said.startswith(f"{winner} is first: {means[0]:.2f} %")
    page = (out / "audition.html").read_text()
    assert f"<h1>{winner}</h1>" in page
    assert 'src="http' not in page

    # A student learned from its own teacher at its own scale, on one part, and was judged by the other.
    run = json.loads((out / "runs" / "other-80-1" / "settings.json").read_text())
    chosen: Any = run.get("settings", run)
    assert (chosen["teachers"], chosen["teacher_scale"], chosen["seed"]) == (["other"], 80.0, 1)
    parts = {name: set(keys(out / "parts" / name)) for name in ("train", "held-out")}
    assert not parts["train"] & parts["held-out"]
    assert len(parts["train"] | parts["held-out"]) == 60

    # More are heard beside those that were: what is done is not done again.
    before = (out / "runs" / "one-40-0" / "done.json").stat().st_mtime_ns
    assert main([*told(stage, "--scale", "40,80,100"), "--out", str(out)]) == 0
    assert len(json.loads((out / "audition.json").read_text())["candidates"]) == 6
    assert (out / "runs" / "one-40-0" / "done.json").stat().st_mtime_ns == before
    assert main([*told(stage, "--steps", "4"), "--out", str(out)]) == 2
    assert "this folder holds another audition: steps" in capsys.readouterr().err

    # The same from a cache that is there: of the whole dataset, by the names in it.
    cached = [word for at, word in enumerate(stage) if "--teacher" not in (word, stage[at - 1])]
    again = [*cached, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "again")]
    teachers = [word for at, word in enumerate(stage) if "--teacher" in (word, stage[at - 1])]
    build = ["cache", "build", stage[2], *teachers, "--views", "2", "--in-process", "--out", str(tmp_path / "cache")]
    assert main(build) == 0
    assert main(again) == 0
    repeated = json.loads((tmp_path / "again" / "audition.json").read_text())
    for one in repeated["candidates"]:
        # Batches of the teachers' forward were others: to rounding.
        assert one["figures"] == pytest.approx(found[one["teacher"], one["scale"]], abs=6.0)


def test_two_teachers_of_one_name_are_refused_by_what_this_command_can_do(
    stage: list[str], tmp_path: Path, save_teacher: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_teacher(tmp_path / "elsewhere" / "one", seed=2)
    out = tmp_path / "out"
    assert main([*stage, "--teacher", other, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "two of the teachers are called 'one'. Name them in `clipstill cache build --teacher-name`" in said
    assert not out.exists()


def told(command: list[str], flag: str, value: str) -> list[str]:
    """The command with another value of an option, which may be new."""
    if flag not in command:
        return [*command, flag, value]
    at = command.index(flag) + 1
    return [*command[:at], value, *command[at + 1 :]]


def keys(folder: Path) -> Iterator[str]:
    for shard in Dataset.open(str(folder)).shards:
        yield from shard.keys


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--scale", "40,many"], "--scale: '40,many' are not all numbers"),
        (["--scale", "40,40"], "--scale: 40.0 is given twice"),
        (["--scale", "0"], "--scale is (0.0,)"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--label", "x"], "zero-shot needs both"),
    ],
)
def test_what_is_not_understood_is_said_in_a_line(
    stage: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main([*told(stage, *words), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_nobody_to_hear_and_names_that_are_not_in_the_cache(
    stage: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*stage[:3], "--out", str(tmp_path / "out")]) == 2
    assert "Give --teacher" in capsys.readouterr().err
    assert main([*stage[:3], "--cache", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "none" in capsys.readouterr().err
