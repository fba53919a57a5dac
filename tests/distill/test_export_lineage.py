"""What a model began from, told from the folders of the runs before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill.export.lineage import architecture, began_from, in_words, run_of
from distill.run_folder import RunFolder


def write_run(folder: Path, *, weights: str | None = None, facts: Any = None, **settings: Any) -> RunFolder:
    (folder / "model").mkdir(parents=True)
    body = {"identity": {"initial": weights}, "settings": settings, "facts": facts or {}}
    (folder / "settings.json").write_text(json.dumps(body))
    return RunFolder.read(folder)


FACTS = {"dataset": {"name": "cc3m", "samples": 2905954, "content": "c0"}, "steps": 3000}


def test_three_stages_are_told_to_the_teacher(tmp_path: Path) -> None:
    prune = {"target": 0.25, "start": 0.0}
    first = {"student": "ViT-B-32", "initial": "ViT-B-32:laion2b_e16", "recipe": "prune-it", "prune": prune}
    write_run(tmp_path / "a", **first, facts=FACTS, weights="w1")
    a, b = str(tmp_path / "a" / "model"), str(tmp_path / "b" / "best")
    write_run(tmp_path / "b", student=a, initial=a, recipe=None, weights="w2")
    (tmp_path / "b" / "best").mkdir()
    last = write_run(tmp_path / "c", student=b, initial=f"local-dir:{b}", weights="w3")
    assert list(began_from(last)) == [
        ("run `b` of ViT-B-32", "w3"),
        (
            "run `a` (recipe `prune-it`) of ViT-B-32, pruning (25% to be left out), "
            "3,000 steps on cc3m (2,905,954 samples, content `c0`)",
            "w2",
        ),
        ("ViT-B-32:laion2b_e16", "w1"),
    ]
    assert architecture(str(tmp_path / "c" / "model")) == "ViT-B-32"


def test_a_smaller_student_is_told_by_its_own_name(tmp_path: Path) -> None:
    """Manual inheritance: weights come from the first stage, the architecture does not."""
    write_run(tmp_path / "one", student="TinyCLIP-ViT-39M-16-Text-19M", initial="ViT-B-16:openai", weights="w1")
    two = write_run(
        tmp_path / "two",
        student="TinyCLIP-ViT-8M-16-Text-3M",
        initial=str(tmp_path / "one" / "model"),
        weights="w2",
    )
    assert architecture(str(two.path / "model")) == "TinyCLIP-ViT-8M-16-Text-3M"
    assert list(began_from(two)) == [
        ("run `one` of TinyCLIP-ViT-39M-16-Text-19M", "w2"),
        ("ViT-B-16:openai", "w1"),
    ]


def test_relative_paths_begin_where_the_run_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "here" / "runs" / "one", student="ViT-S-16", out="runs/one")
    begun = {"student": "runs/one/model", "initial": "runs/one/model"}
    two = write_run(tmp_path / "here" / "runs" / "two", **begun, out="./runs/two/", weights="w")
    monkeypatch.chdir(tmp_path)
    assert list(began_from(two)) == [("run `one` of ViT-S-16", "w")]
    assert architecture(str(two.path / "model")) == "ViT-S-16"
    # One that says nothing of its own place was started where we are, as far as anybody knows.
    monkeypatch.chdir(tmp_path / "here")
    three = write_run(tmp_path / "three", **begun, out=str(tmp_path / "three"), weights="w")
    assert list(began_from(three)) == [("run `one` of ViT-S-16", "w")]
    run = run_of("runs/two/model")
    assert run is not None
    assert run.path == two.path


def test_folders_that_were_used_again_end_the_chain(tmp_path: Path) -> None:
    """The first run's folder was made anew from the second one's model."""
    one, two = (str(tmp_path / name / "model") for name in ("one", "two"))
    write_run(tmp_path / "one", student=two, initial=two, weights="w1")
    last = write_run(tmp_path / "two", student=one, initial=one, weights="w2")
    assert list(began_from(last)) == [
        ("run `one` of two", "w2"),
        ("the `model` of a run `two`, of which no more is known", "w1"),
    ]
    assert architecture(two) == "two"


def test_a_run_whose_settings_are_damaged_is_told_by_its_folders_name(tmp_path: Path) -> None:
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "settings.json").write_text("{")
    assert in_words(str(tmp_path / "run" / "best")) == "the `best` of a run `run`, of which no more is known"
    assert architecture(str(tmp_path / "run" / "best")) == "run"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("ViT-B/32:openai", "ViT-B/32:openai"),
        ("ViT-B-32:/home/somebody/weights.pt", "ViT-B-32:weights.pt"),
        ("hf-hub:org/name", "hf-hub:org/name"),
        ("/home/somebody/vit-s", "the model folder `vit-s`"),
        ("local-dir:/home/somebody/vit-s", "the model folder `vit-s`"),
    ],
)
def test_what_is_no_runs_is_told_without_folders(spec: str, told: str) -> None:
    assert in_words(spec) == told


@pytest.mark.parametrize(
    ("student", "name"),
    [
        ("ViT-B/32", "ViT-B-32"),
        ("timm/resnet10t", "timm/resnet10t"),
        ("/home/somebody/small.json", "small"),
        ("gone/model", "gone"),
        ("/home/somebody/vit-s", "vit-s"),
    ],
)
def test_a_student_is_called_by_its_architecture(student: str, name: str) -> None:
    assert architecture(student) == name
