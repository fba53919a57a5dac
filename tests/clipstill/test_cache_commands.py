"""`clipstill cache ...` as it is typed: what is printed, what is written, and the exit status."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipstill.main import main
from shards import Dataset

Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    make_dataset: Callable[..., Dataset],
    save_teacher: Callable[..., str],
    save_student: Callable[..., str],
) -> Path:
    """A dataset of 14 samples in two shards, two teachers, a student."""
    root = tmp_path_factory.mktemp("typed")
    make_dataset(root / "shards", (8, 6))
    save_teacher(root / "one")
    save_teacher(root / "two", seed=2)
    save_student(root / "student.json")
    return root


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in the folder; returns the exit status, the printed lines, and what went to standard error."""
    monkeypatch.chdir(place)

    def typed(*words: str) -> tuple[int, list[str], str]:
        status = main(list(words))
        shown = capsys.readouterr()
        return status, shown.out.splitlines(), shown.err

    return typed


BUILD = ("cache", "build", "shards", "--in-process", "--batch-size", "8", "--views", "2")


def test_from_a_plan_to_a_page(run: Run, place: Path) -> None:
    teachers = ("--teacher", "one", "--teacher", "two", "--teacher-name", "a", "--teacher-name", "b")
    plan = ("--in-process", "--batch-size", "8", "--views", "2", "--seconds", "1", "--epochs", "1", *teachers)
    before = sorted(place.rglob("*"))
    status, lines, _ = run("cache", "plan", "shards", *plan)
    assert status == 0
    assert [line.split()[0] for line in lines[:2]] == ["a", "b"]
    assert "the cache does not pay" in lines[-1]
    assert sorted(place.rglob("*")) == before
    promised = float(re.search(r"\(([\d,]+) bytes a sample\)", lines[2]).group(1).replace(",", ""))

    status, lines, _ = run(*BUILD, *teachers, "--out", "cache")
    assert status == 0
    assert lines[0].startswith("14 samples x 2 views and 1 caption by 2 teachers, ")
    assert lines[1] == "8 files made, 0 were there already; batches of 8"
    written = float(re.search(r"\(([\d,]+) bytes a sample\)", lines[0]).group(1).replace(",", ""))
    # So few rows a file that its header weighs as much as they do: the plan cannot promise more.
    assert promised <= written
    status, lines, _ = run(*BUILD, *teachers, "--out", "cache")
    assert lines[1].startswith("0 files made, 8 were there already")

    status, lines, _ = run("cache", "verify", "shards", "--cache", "cache")
    assert status == 0
    assert [line.split(":")[0] for line in lines if " is sound" in line] == ["a is sound", "b is sound"]

    status, lines, _ = run("cache", "report", "shards", "--cache", "cache", "--teacher-name", "b")
    assert status == 0
    assert "cache/b/report.html" in lines[0]
    assert (place / "cache" / "b" / "report.html").read_text().startswith("<!doctype html>")
    assert not (place / "cache" / "a" / "report.html").exists()
    assert pq.read_table(place / "cache" / "b" / "scores.parquet").num_rows == 14

    path = place / "cache" / "a" / "captions-txt" / "00001.arrow"
    path.write_bytes(path.read_bytes()[:-50] + b"\0" * 50)
    status, lines, _ = run("cache", "verify", "shards", "--cache", "cache")
    assert status == 1
    assert any(line.startswith("captions-txt/00001.arrow: hashes to ") for line in lines)
    assert any(line.startswith("a has 1 problem:") for line in lines)
    assert any(line.startswith("b is sound") for line in lines)


def test_captions_of_a_table_and_views_of_the_evaluation(run: Run, place: Path) -> None:
    keys = [key for shard in Dataset.open(str(place / "shards")).shards for key in shard.keys]
    pq.write_table(
        pa.table({"key": keys, "said": [[f"one {key}", f"two {key}"] for key in keys]}), place / "said.parquet"
    )
    status, lines, _ = run(
        *("cache", "build", "shards", "--in-process", "--teacher", "one", "--teacher-name", "a", "--out", "told"),
        *("--batch-size", "8", "--evaluation-view", "--captions", "txt", "--captions", "table:said.parquet#said*2"),
    )
    assert status == 0
    assert lines[0].startswith("14 samples x 1 view and 3 captions by 1 teacher, ")
    facts = json.loads((place / "told" / "a" / "views-000-000" / "layer.json").read_text())
    assert facts["settings"]["policy"]["kind"] == "centre"
    with pa.memory_map(str(place / "told" / "a" / "captions-table-said" / "00001.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table["text_001"].to_pylist() == [f"two {key}" for key in keys[8:]]
    assert run("cache", "verify", "shards", "--cache", "told")[0] == 0


def test_out_to_others_and_back_and_a_student_without_a_teacher(run: Run, place: Path) -> None:
    assert run(*BUILD, "--teacher", "one", "--teacher-name", "a", "--out", "mine")[0] == 0
    width = json.loads((place / "mine" / "a" / "teacher.json").read_text())["embed_dim"]
    status, lines, _ = run(
        "cache", "export", "shards", "--cache", "mine", "--format", "npz", "--out", "dr", "--in-process"
    )
    assert (status, lines[0].split(",")[0].split(" (")[0]) == (0, "14 samples")
    status, lines, _ = run(
        *("cache", "import", "shards", "dr/*.tar", "--format", "datacompdr", "--key-column", "key", "--out", "back"),
        *("--part", f"a:{width}:20", "--in-process"),
    )
    assert status == 0
    assert lines[0].startswith("14 samples have embeddings now")
    assert lines[1] == "0 of yours are not there; 0 rows there are not yours"
    status, lines, _ = run("cache", "verify", "shards", "--cache", "back")
    assert (status, lines) == (0, [lines[0]])
    status, _, _ = run(
        *("distill", "shards", "--cache", "back", "--student", "student.json", "--steps", "2", "--batch-size", "4"),
        *("--out", "run"),
    )
    assert status == 0
    assert (place / "run" / "model" / "open_clip_model.safetensors").exists()

    status, lines, _ = run("cache", "export", "shards", "--cache", "mine", "--format", "clip-retrieval", "--out", "cr")
    assert (status, lines) == (0, ["14 samples, in cr"])
    rows = np.load(place / "cr" / "img_emb" / "img_emb_0.npy")
    assert np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max() < 2e-3
    status, lines, _ = run(
        *("cache", "import", "shards", "cr", "--format", "clip-retrieval", "--teacher", "one", "--image-size", "48"),
        *("--out", "again", "--in-process"),
    )
    assert (status, lines[0].split(" have")[0]) == (0, "14 samples")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*BUILD, "--teacher", "onee", "--out", "x"], ["onee", "ARCH:TAG"]),
        ([*BUILD, "--teacher", "one", "--out", "x", "--captions", "json"], ["json", "table:PATH"]),
        ([*BUILD, "--teacher", "one", "--out", "x", "--captions", "table:no.parquet#a"], ["no.parquet"]),
        ([*BUILD, "--teacher", "one", "--teacher", "one", "--out", "x"], ["'one'", "name"]),
        ([*BUILD, "--teacher", "one", "--teacher", "two", "--teacher-name", "a", "--out", "x"], ["1 names for 2"]),
        ([*BUILD, "--teacher", "one", "--evaluation-view", "--out", "x"], ["2 were asked for", "--views 1"]),
        ([*BUILD, "--teacher", "one", "--rand-augment", "3", "9", "--out", "x"], ["3"]),
        ([*BUILD, "--teacher", "python:nothing:Here", "--out", "x"], ["nothing"]),
        (["cache", "plan", "shards", "--teacher", "one", "--epochs", "0", "--in-process"], ["0 passes"]),
        (["cache", "verify", "shards", "--cache", "nowhere"], ["nowhere", "no teacher cache here"]),
        (["cache", "report", "shards", "--cache", "nowhere"], ["nowhere", "no teacher cache here"]),
        (
            ["cache", "import", "shards", "nope/*.tar", "--format", "datacompdr", "--out", "x", "--in-process"],
            ["nope/*.tar"],
        ),
        (
            ["cache", "import", "shards", "cr", "--format", "clip-retrieval", "--out", "x", "--in-process"],
            ["--teacher", "--image-size"],
        ),
        (
            ["cache", "export", "shards", "--cache", "x", "--format", "npz", "--out", "y", "--in-process"],
            ["no teacher"],
        ),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_one_line(run: Run, place: Path, words: list[str], told: list[str]) -> None:
    status, _, errors = run(*words)
    assert status == 2
    (line,) = errors.splitlines()
    assert line.startswith("clipstill: error: ")
    for part in told:
        assert part in line
    assert not (place / "x").exists()
    shutil.rmtree(place / "y", ignore_errors=True)
