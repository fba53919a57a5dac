"""`clipstill distill`: options, recipes and their order; and smoke tests of whole recipes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clipstill.main import main
from distill.recipe import list_recipes
from distill.settings import EvaluationSettings, OptimiserSettings, RunSettings

TINY_RECIPE = """# A tiny student of two teachers
student = "{student}"
teachers = ["one", "two"]
captions = ["txt", "syn"]
epochs = 100
batch_size = 4096
[losses]
reinforcement = 1
fd = [[0, 0], [0.5, 2000]]
[optimiser]
warmup = 1000
ema = 0.9
"""


@pytest.fixture
def recipe(tmp_path: Path, save_student: Any) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE.format(student=save_student(tmp_path / "student.json", image=32)))
    return str(path)


def resolved(run: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((run / "settings.json").read_text())["settings"]
    return settings


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["distill", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.usefixtures("one_thread")
def test_options_reach_the_settings_and_override_the_recipe(
    tmp_path: Path, make_dataset: Any, save_student: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(tmp_path / "data", [12])
    student, out = save_student(tmp_path / "student.json", image=32), tmp_path / "run"
    (tmp_path / "own.toml").write_text(
        f'student = "{student}"\nepochs = 9\n[optimiser]\nlr = 0.5\nweight_decay = 0.3\n'
    )
    options = """
        --steps 2 --batch-size 4 --lr 0.01 --schedule wsd --decay 0.5 --betas 0.8 0.9 --warmup 1 --ema 0.5
        --loss contrastive=0:1,1:0.5 --loss sigmoid --lock text --max-scale 50 --micro-batches 2 --seed 3
        --explosion 0 --no-compile --log-every 1 --keep 1
    """
    given = ["--recipe", str(tmp_path / "own.toml"), "--out", str(out), *options.split()]
    status = main(["distill", str(tmp_path / "data"), *given])
    assert status == 0
    assert "2 steps, last loss" in capsys.readouterr().out
    settings = resolved(out)
    assert (settings["steps"], settings["epochs"], settings["batch_size"], settings["lock"]) == (2, None, 4, ["text"])
    assert settings["recipe"] == "own"
    assert settings["losses"] == {
        "contrastive": {"weight": [[0, 1], [1, 0.5]], "options": {}},
        "sigmoid": {"weight": 1.0, "options": {}},
    }
    optimiser = settings["optimiser"]
    assert (optimiser["lr"], optimiser["weight_decay"], optimiser["schedule"]) == (0.01, 0.3, "wsd")
    assert (optimiser["betas"], optimiser["decay"], optimiser["ema"]) == ([0.8, 0.9], 0.5, 0.5)
    assert (settings["micro_batches"], settings["seed"], settings["max_scale"]) == (2, 3, 50)
    # What nobody gave is what the settings' own defaults are.
    assert optimiser["eps"] == OptimiserSettings().eps
    assert settings["checkpoint_every"] == 500


def test_help_states_the_defaults_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    _, *options = re.split(r"^  --", capsys.readouterr().out, flags=re.MULTILINE)
    said = {option.split()[0]: " ".join(option.split()) for option in options}
    stated = {name: text.partition("(default: ")[2].partition(")")[0] for name, text in said.items()}
    run, optimiser = RunSettings(shards="S", out="O", student="X", steps=1), OptimiserSettings()
    for of, names in (
        (run, ["batch_size", "views", "precision", "log_every", "keep", "explosion", "max_scale", "join_limit"]),
        (optimiser, ["lr", "weight_decay", "clip_norm", "schedule"]),
    ):
        for name in names:
            assert stated[name.replace("_", "-")] == str(getattr(of, name)), name
    assert stated["betas"] == "0.9 0.98"
    assert "within a tenth of the run" in said["warmup"]
    assert optimiser.warmup_steps(10_000) == 500
    assert stated["checkpoint-minutes"] == "10.0"
    assert stated["eval-every"] == str(EvaluationSettings(on="S").every)


def test_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--recipe", "list"]) == 0
    told = capsys.readouterr().out
    for facts in list_recipes():
        student = facts.student or "the student that is given"
        assert f"{facts.name}\n    {facts.about}\n    {student}; {' + '.join(facts.losses)}\n" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x", "--out", "o", "--steps", "1"], ["student is missing", "--student"]),
        (["--recipe", "clip-kd", "--out", "o"], ["shards is missing"]),
        (["x", "--recipe", "clip-kd"], ["out is missing", "--out"]),
        (["x", "--recipe", "clip-kdd", "--out", "o"], ["'clip-kdd'", "clip-kd"]),
        (["x", "--student", "a", "--steps", "1", "--out", "o", "--loss", "fd=0:1:2"], ["'0:1:2'", "NAME=0:0,0.1:2000"]),
        (["x", "--student", "a", "--steps", "1", "--out", "o", "--loss", "fd=0:1,0.5"], ["'0:1,0.5'"]),
        (["x", "--student", "a", "--steps", "1", "--out", "o", "--eval-every", "5"], ["--eval"]),
        (["x", "--recipe", "clip-kd", "--out", "o", "--cache", "c", "--processes", "2"], ["2 processes", "torchrun"]),
        (["--recipe", "clip-kd", "--smoke", "--cache", "c"], ["no shards"]),
        (["x", "--student", "a", "--steps", "1", "--out", "o", "--prune", "0.5"], ["trained weights", "--initial"]),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str], told: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *arguments)
    for words in told:
        assert words in line
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_thread")
def test_a_smoke_test_has_what_the_recipe_needs_and_keeps_its_shape(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two teachers and synthetic captions are made, steps and batch shrink, the rest is the recipe's."""
    assert main(["distill", "--recipe", recipe, "--smoke", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "reinforcement + fd, 2 teachers, captions txt and syn" in told
    assert "in 3 steps of 4" in told
    settings = resolved(tmp_path / "out" / "run")
    assert (settings["epochs"], settings["steps"], settings["optimiser"]["ema"]) == (None, 3, 0.9)
    assert settings["losses"]["fd"]["weight"] == [[0, 0], [0.5, 2000]]
    terms = json.loads((tmp_path / "out" / "run" / "log.jsonl").read_text().splitlines()[0])
    assert {"reinforcement/txt", "reinforcement/syn", "fd/txt", "fd/syn"} <= set(terms)
    # Shards and a cache that are there serve as well, and an option has the last word.
    made = ["--cache", str(tmp_path / "out" / "cache"), "--out", str(tmp_path / "again"), "--steps", "1"]
    assert main(["distill", str(tmp_path / "out" / "shards"), "--recipe", recipe, "--smoke", *made]) == 0
    assert "in 1 step of 4" in capsys.readouterr().out
    assert not (tmp_path / "again" / "shards").exists()


@pytest.mark.usefixtures("one_thread")
def test_a_smoke_test_of_a_published_recipe_needs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """teensy-tiny's student, in full, learns from text embeddings alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert main(["distill", "--recipe", "teensy-tiny-4m", "--smoke"]) == 0
    assert "clip-mixer-4M (4.0 M parameters) trains: contrastive" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_under_torchrun_the_first_process_speaks(tmp_path: Path, make_dataset: Any, save_student: Any) -> None:
    make_dataset(tmp_path / "data", [12])
    student = save_student(tmp_path / "student.json", image=32)
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "clipstill", "distill"]
    options = ["--student", student, "--steps", "2", "--batch-size", "4", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*program, str(tmp_path / "data"), *options], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 steps, last loss") == 1
