"""Evaluation inside a run: several sets of any kind, dealt out over processes, in the run's precision."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_models import load_model
from clipstill.main import main
from distill.run_folder import read_log
from distill.settings import EvaluationSettings
from distill.training.in_run import InRun
from distill.training.ranks import Ranks
from shards import Dataset
from tests.distill.in_run_program import answers
from tests.evaluation.test_sets import NAMES, labelled, wds

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_several_processes_find_what_one_finds(
    make_dataset: Any, save_teacher: Any, damage_image: Callable[[Dataset, int, int], None], tmp_path: Path
) -> None:
    """Parts of unequal size, one of them none; what one cannot read, all refuse, and none waits for ever."""
    pets = str(wds(tmp_path / "wds_vtab-pets_test", labelled([2, 0, 1, 1, 0]), **NAMES))
    few = str(wds(tmp_path / "wds_few", labelled([2, 0]), **NAMES))
    pairs = str(make_dataset(tmp_path / "pairs", [4, 3]).folder)
    broken = make_dataset(tmp_path / "broken", [7], seed=3)
    damage_image(broken, 0, 6)
    cases = [{"on": [pets, pairs, few]}, {"on": [str(broken.folder)]}, {"on": [pairs]}]
    plan = {"size": 3, "model": save_teacher(tmp_path / "model"), "cases": cases, "out": str(tmp_path)}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-W", "error", "-m", "tests.distill.in_run_program", str(tmp_path / "plan.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = answers(plan, Ranks(0, 1, torch.device("cpu")))
    for rank in range(3):
        several, refused, one = json.loads((tmp_path / f"{rank}.json").read_text())
        assert several == pytest.approx(alone[0], abs=1e-9)
        assert refused == alone[1]
        assert one == pytest.approx(alone[2], abs=1e-9)
    assert "tiny-000000006" in alone[1][0]
    assert {name.split("/")[1] for name in alone[0]} == {"vtab-pets", "tiny", "few"}
    assert {f"eval/vtab-pets/zero_shot/{figure}" for figure in ("top1", "mean_per_class")} <= alone[0].keys()
    assert "eval/retrieval/image_to_text/R@1" in alone[2]


def test_it_computes_in_the_runs_precision(make_dataset: Any, save_teacher: Any, tmp_path: Path) -> None:
    pairs = str(make_dataset(tmp_path / "pairs", [5]).folder)
    loaded = load_model(save_teacher(tmp_path / "model"))
    seen: list[torch.dtype] = []
    loaded.model.visual.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    InRun(EvaluationSettings(on=pairs), loaded.config, torch.device("cpu"), "bf16")(loaded.model)
    assert set(seen) == {torch.bfloat16}


def test_a_run_evaluates_on_several_sets_and_keeps_the_best_by_one(
    world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pets = str(wds(tmp_path / "wds_vtab-pets_test", labelled([2, 0, 1, 1, 0]), **NAMES))
    out = tmp_path / "run"
    best = "eval/vtab-pets/zero_shot/mean_per_class"
    command = [
        "distill",
        world.shards,
        "--student",
        world.student,
        "--steps",
        "2",
        "--batch-size",
        "6",
        "--warmup",
        "0",
    ]
    sets = ["--eval", pets, "--eval", world.shards]
    with caplog.at_level("INFO", "distill"):
        assert main([*command, *sets, "--best", best, "--out", str(out)]) == 0
    (line,) = [line for line in read_log(out / "log.jsonl") if best in line]
    name = Dataset.open(world.shards).name
    assert line.keys() >= {f"eval/{name}/retrieval/text_to_image/R@10", "eval/vtab-pets/zero_shot/top1"}
    assert json.loads((out / "done.json").read_text())["best"]["metric"] == best
    (said,) = [text for text in caplog.messages if text.startswith("after step 2")]
    assert f"vtab-pets zero-shot top-1 {line['eval/vtab-pets/zero_shot/top1']:.1f} %" in said
    assert main([*command, *sets, "--best", "eval/zero_shot/top1", "--out", str(tmp_path / "other")]) == 2
    assert "evaluation.best is 'eval/zero_shot/top1'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_evaluated_is_said_and_ends_no_run(
    world: Any,
    make_dataset: Any,
    damage_image: Callable[[Dataset, int, int], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A damaged image shows only when it is decoded: the student is trained, and judged on the other set."""
    broken = make_dataset(tmp_path / "broken", [5], seed=3)
    damage_image(broken, 0, 2)
    pets = str(wds(tmp_path / "wds_vtab-pets_test", labelled([2, 0, 1, 1, 0]), **NAMES))
    out = tmp_path / "run"
    command = ["distill", world.shards, "--student", world.student, "--steps", "4", "--batch-size", "6", "--warmup"]
    sets = ["--eval", str(broken.folder), "--eval", pets, "--eval-every", "2"]
    best = ["--best", f"eval/{broken.name}/retrieval/mean_R@1"]
    assert main([*command, "0", *sets, *best, "--out", str(out)]) == 0
    told = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [(one["step"], one["kind"]) for one in told] == [(2, "evaluation"), (4, "evaluation")]
    assert all("tiny-000000002" in one["text"] and "cannot be decoded" in one["text"] for one in told)
    assert sum("not evaluated after step" in text for text in caplog.messages) == 2
    judged = [line["step"] for line in read_log(out / "log.jsonl") if "eval/vtab-pets/zero_shot/top1" in line]
    assert judged == [2, 4]
    assert json.loads((out / "done.json").read_text())["best"] is None
    load_model(str(out / "model"))
