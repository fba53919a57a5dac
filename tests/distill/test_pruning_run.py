"""Pruning runs: what they deliver, that they go on where they stopped, and that the next stage goes on from them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_models import create_student, load_model, save_model
from distill.export import FORMATS
from distill.pruning import PruneSettings, pruning_report
from distill.pruning.gates import LIMIT
from distill.settings import RunSettings
from distill.training.run import Run
from distill.training.train import train
from evaluation import evaluate, open_set
from shards import UserError
from tests.distill import pruning_formulas as formulas
from tests.distill.ranks_program import prunings


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "open_clip_model.safetensors")


def counted(model: Path) -> int:
    """Parameters of attention and MLPs in a model folder."""
    tensors = load_file(model / "open_clip_model.safetensors")
    return sum(value.numel() for name, value in tensors.items() if ".attn." in name or ".mlp." in name)


def delivered(run: Path) -> dict[str, bytes]:
    """What a run is for: by name the model folder's files, and the report."""
    files = [run / "pruning.json", *sorted((run / "model").iterdir())]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def pruned(world: Any, save_student: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """A finished run that took a student of two layers to half its size, with an average of its weights."""
    root = tmp_path_factory.mktemp("pruned")
    student = save_student(root / "student.json", layers=2)
    model, config = create_student(student, 0)
    save_model(model, config, str(root / "first"))
    settings: RunSettings = world.settings(
        root / "run",
        student=student,
        initial=str(root / "first"),
        prune=PruneSettings(target=0.5, ramp=16, lr=0.3),
        steps=24,
        checkpoint_every=4,
        keep=4,
        optimiser={"ema": 0.9},
    )
    train(settings)
    return settings


def test_a_pruning_run_delivers_the_dense_model(pruned: RunSettings) -> None:
    out = Path(pruned.out)
    report = json.loads((out / "pruning.json").read_text())
    assert report["sparsity"] > 0.4
    assert report["parameters"]["kept"] == counted(out / "model")
    assert report["parameters"]["full"] == formulas.prunable(32, 2) + formulas.prunable(16, 2)
    assert report["sparsity"] == 1 - report["parameters"]["kept"] / report["parameters"]["full"]
    line = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert line["prune/target"] == pytest.approx(0.5)
    assert line["prune/lambda1"] > 10


def test_what_is_left_is_known_on_the_way_and_the_delivered_model_is_counted(
    pruned: RunSettings, tmp_path: Path
) -> None:
    delivered = json.loads((Path(pruned.out) / "pruning.json").read_text())
    loaded = load_model(f"{pruned.out}/model")
    counts = {name: value.numel() for name, value in loaded.model.named_parameters()}
    image = sum(count for name, count in counts.items() if name.startswith("visual."))
    rest = counts["logit_scale"] + counts["token_embedding.weight"]
    assert delivered["delivered"] == {"image": image, "text": sum(counts.values()) - image - rest}
    assert delivered["step"] == 24

    class StoppedError(Exception):
        pass

    def stop(_training: Any, step: int, *_: Any, **__: Any) -> None:
        if step == 8:
            raise StoppedError

    settings = replace(pruned, out=str(tmp_path / "run"), checkpoint_every=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.training.train._Training._keep", stop)
        with pytest.raises(StoppedError):
            train(settings)
    on_the_way = json.loads((tmp_path / "run" / "pruning.json").read_text())
    assert on_the_way["step"] == 4
    assert on_the_way.keys() == delivered.keys() - {"delivered"}


@pytest.mark.parametrize(
    ("prune", "says"),
    [
        # In so few steps no gate closes; at such a rate most do.
        (PruneSettings(target=0.5, ramp=1), r"asked to leave out 50.0 %, \d\.\d % are: run longer, or with a larger"),
        (PruneSettings(target=0.1, ramp=0, lr=3.0), r"asked to leave out 10.0 %, [2-9]\d.\d % are: give a longer ramp"),
    ],
)
def test_a_missed_target_is_said(
    pruned: RunSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, prune: PruneSettings, says: str
) -> None:
    train(replace(pruned, out=str(tmp_path / "run"), steps=6, prune=prune))
    assert re.search(says, caplog.text)


def test_a_ramp_that_outlasts_the_epochs_is_refused(world: Any, tmp_path: Path) -> None:
    settings = world.settings(tmp_path, steps=None, epochs=2.0, prune=PruneSettings(target=0.5, ramp=9))
    with pytest.raises(UserError, match="a ramp of 9 steps does not end in 8"):
        Run(settings)
    assert Run(replace(settings, prune=PruneSettings(target=0.5, ramp=8))).steps == 8


def test_the_same_weights_have_the_same_fingerprint_under_masks(pruned: RunSettings) -> None:
    assert Run(pruned).initial == Run(replace(pruned, prune=None)).initial


def test_a_run_goes_on_to_the_same_bytes_wherever_it_stopped(pruned: RunSettings, tmp_path: Path) -> None:
    """In the ramp, at its end, after it, at the last step; and while the dense model was delivered."""
    whole = Path(pruned.out)
    expected = delivered(whole)
    assert {"pruning.json", "model/open_clip_model.safetensors", "model/open_clip_config.json"} <= expected.keys()
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())] == [f"{at:08d}" for at in (12, 16, 20, 24)]
    for at, left in ((12, ()), (16, ()), (20, ()), (24, ()), (24, ("model",)), (24, ("model", "pruning.json"))):
        again = tmp_path / f"from-{at}-{len(left)}"
        shutil.copytree(whole, again)
        (again / "done.json").unlink()
        for checkpoint in (again / "checkpoints").iterdir():
            if int(checkpoint.name) > at:
                shutil.rmtree(checkpoint)
        if "model" not in left:
            shutil.rmtree(again / "model")
        if "pruning.json" not in left:
            (again / "pruning.json").unlink()
        train(replace(pruned, out=str(again)))
        assert delivered(again) == expected, again.name
        for part in (path.name for path in (whole / "checkpoints" / "00000024").glob("*.safetensors")):
            here, there = (run / "checkpoints" / "00000024" / part for run in (again, whole))
            assert here.read_bytes() == there.read_bytes(), (again.name, part)


def test_the_next_run_goes_on_from_it(world: Any, pruned: RunSettings, tmp_path: Path) -> None:
    end = str(Path(pruned.out) / "model")
    trained = train(world.settings(tmp_path / "on", student=end, initial=end, steps=2))
    found, before = weights(tmp_path / "on"), weights(Path(pruned.out))
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in before.items()}
    assert load_model(trained.model).config == load_model(end).config


def close(settings: RunSettings, *parts: tuple[str, int]) -> dict[str, Any]:
    """Run `settings` from masks that are about to close, as thousands of slow steps would have left them.

    At its end heads or MLP units of a layer of the text tower are as closed as they can be. Returns the report.
    """
    run = Run(settings)
    (pruning,) = prunings(run)
    assert settings.prune is not None
    with torch.no_grad():
        for row in pruning.masks():
            row.fill_(0.6)
    for batch in run.loader.batches(0, run.steps):
        run.step(batch)
    gates = pruning.gates[1]
    for part, layer in parts:
        counts = [getattr(each, part) for each in gates.shape.layers]
        with torch.no_grad():
            getattr(gates, part).split(counts)[layer].fill_(-LIMIT)
    save_model(*run.finished(), f"{settings.out}/model")
    return pruning_report(run.delivered, settings.prune)


def test_three_stages_leave_a_quarter(world: Any, tmp_path: Path, save_teacher: Callable[..., str]) -> None:
    """From the cache alone; what is reported is what is in the files, and they are a model like any other."""
    first = save_teacher(tmp_path / "full", image=32, dim=24, layers=3)
    full = formulas.prunable(32, 3) + formulas.prunable(16, 3)

    def stage(student: str, name: str, target: float, steps: int, lr: float) -> RunSettings:
        prune = PruneSettings(target=target, ramp=steps // 2, lr=lr)
        settings: RunSettings = world.settings(
            tmp_path / name, student=student, initial=student, prune=prune, steps=steps, checkpoint_every=steps
        )
        return settings

    one = stage(first, "one", 0.25, steps=16, lr=0.04)
    two = stage(f"{one.out}/model", "two", 0.5, steps=16, lr=0.1)
    three = stage(f"{two.out}/model", "three", 0.75, steps=40, lr=0.15)
    reports = [close(one, ("heads", 0), ("mlp", 2)), close(two, ("mlp", 2))]
    train(three)
    reports.append(json.loads((tmp_path / "three" / "pruning.json").read_text()))

    before = full
    for settings, report in zip((one, two, three), reports, strict=True):
        assert settings.prune is not None
        kept = counted(Path(settings.out) / "model")
        assert report["parameters"] == {"full": full, "before": before, "kept": kept}
        assert report["sparsity"] == pytest.approx(1 - kept / full, rel=1e-12)
        assert report["sparsity"] > settings.prune.target - 0.04
        assert report["sparsity"] == pytest.approx(report["expected"], abs=0.05)
        assert kept < before
        before = kept
    texts = [report["towers"]["text"] for report in reports]
    assert [text["layers"][0]["heads"] for text in texts] == [0, 0, 0]
    # The limit of log α leaves 64·P(open) = 3.02 of a layer's units in one stage, of 3 then none.
    assert [text["layers"][2]["mlp"] for text in texts] == [3, 0, 0]

    loaded = load_model(f"{three.out}/model")
    assert evaluate(loaded, open_set(str(world.dataset.folder)), batch_size=8).result["samples"] == 26
    for name in ("torchscript", "onnx", "safetensors"):
        assert max(FORMATS[name](loaded, str(tmp_path / name)).values()) < 1e-3
