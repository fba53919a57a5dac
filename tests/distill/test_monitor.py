"""What goes wrong in a run is named at once, with its step and cause, and nothing useless is kept of it."""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from distill.data.loader import Loader
from distill.run_folder import read_log
from distill.settings import EvaluationSettings
from distill.training.checkpoint import Checkpoints
from distill.training.monitor import Watch
from distill.training.run import Run
from distill.training.train import train
from evaluation.sets import SetSettings, open_by_name, refuse_unknown_figure
from shards import UserError


def events(out: Path) -> list[tuple[int, str, str]]:
    path = out / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["kind"], line["text"]) for line in lines]


@pytest.mark.parametrize("every", [(1, 100), (100, 1), (3, 2)])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_never_kept(
    world: Any, tmp_path: Path, every: tuple[int, int]
) -> None:
    settings = world.settings(
        tmp_path / "run", log_every=every[0], checkpoint_every=every[1], optimiser={"lr": 1e30, "warmup": 0}
    )
    run = Run(settings)
    losses, norms = [], []
    for batch in run.loader.batches(0, 8):
        values = run.step(batch)
        losses.append(float(values["loss"]))
        norms.append(float(values["grad_norm"]))
    bad = next(step for step in range(8) if not math.isfinite(losses[step] + norms[step]))
    what = "loss" if not math.isfinite(losses[bad]) else "grad_norm"
    assert 0 < bad < 7
    before = ", ".join(f"{norm:.3g}" for norm in norms[:bad])
    with pytest.raises(UserError) as caught:
        train(settings)
    said = str(caught.value)
    assert f"/run: {what} is {losses[bad] if what == 'loss' else norms[bad]} at step {bad + 1}" in said
    assert f"gradient norms of the steps before: {before}." in said
    assert "lower the learning rate (now 1e+30)" in said
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("loader", "checkpoint"))]
    out = tmp_path / "run"
    assert not (out / "done.json").exists()
    assert not (out / "model").exists()
    for line in read_log(out / "log.jsonl"):
        assert line["step"] <= bad
        assert all(math.isfinite(value) for name, value in line.items() if name != "measured")
    for step in Checkpoints(out, 2).steps():
        assert step <= bad
        model = Checkpoints(out, 2).load(step)[0]["model"]
        assert step == bad or all(value.isfinite().all() for value in model.values())
    ((_, kind, text),) = events(out)
    assert (kind, text) == ("stopped", said)
    assert said.split(": ")[1][:20] in (out / "report.html").read_text()


def poisoned(world: Any, root: Path, column: str, number: float) -> tuple[str, str]:
    """A copy of the world's cache with one embedding that is not finite, and its key."""
    cache = Path(shutil.copytree(world.cache, root / "poisoned"))
    kind = "captions-txt" if column.startswith("caption") else "views-000-002"
    path = cache / "teach" / kind / "00002.arrow"
    with pa.OSFile(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    key = table["key"][7].as_py()
    raw = path.read_bytes()
    values = table[column].chunk(0).flatten().to_numpy()
    needle = values[7 * 40 : 8 * 40].tobytes()
    assert raw.count(needle) == 1
    path.write_bytes(raw.replace(needle, np.full(40, number, np.float16).tobytes()))
    return str(cache), key


@pytest.mark.parametrize(
    ("column", "name", "number"), [("caption_000", "txt", math.nan), ("view_001", "image", math.inf)]
)
def test_a_cached_embedding_that_is_not_finite_is_named_with_its_key(
    world: Any, tmp_path: Path, column: str, name: str, number: float
) -> None:
    """It is the cause, and so the message, not the loss that it makes."""
    cache, key = poisoned(world, tmp_path, column, number)
    settings = world.settings(tmp_path / "run", cache=cache, steps=20, log_every=4, checkpoint_every=3)
    loader = Run(settings).loader
    step = next(
        step
        for step in range(20)
        for said in loader.batch(step).targets.teachers["txt"]
        if not torch.isfinite(said.text if name == "txt" else said.image).all()
    )
    with pytest.raises(UserError) as caught:
        train(settings)
    said = str(caught.value)
    assert said.startswith(f"{cache}/teach: loss is nan at step {step + 1} (affinity)")
    assert f": the cached {name} embedding of {key} is not finite. Run `clipstill cache verify`" in said
    assert all(done <= step for done in Checkpoints(tmp_path / "run", 2).steps())
    assert all(line["step"] <= step for line in read_log(tmp_path / "run" / "log.jsonl"))


def test_steps_that_fp16_skips_leave_the_log_plain_json(world: Any, tmp_path: Path) -> None:
    train(world.settings(tmp_path / "run", precision="fp16", log_every=1, losses={"fd": 2000.0}))
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert "grad_norm" not in lines[0], "the first step should have overflowed"
    assert "grad_norm" in lines[-1]


def feed(watch: Watch, losses: list[float], first: int = 1, weights: dict[str, float] | None = None) -> None:
    weights = weights or {"affinity": 1.0}
    for step, loss in enumerate(losses, first):
        term = loss / weights["affinity"]
        values = {"loss": loss, "affinity": term, "grad_norm": loss / 2, "logit_scale": 10.0}
        watch.add(step, {name: torch.tensor(value) for name, value in values.items()}, weights)


def test_an_explosion_is_named(world: Any) -> None:
    """Means over 20 steps, against the lowest before: a single step's leap is none."""
    watch = Watch(world.settings("R", explosion=4.0))
    feed(watch, [2.0] * 20 + [1.0] * 19 + [60.0] + [3.9] * 20)
    watch.take()
    watch = Watch(world.settings("R", explosion=4.0))
    feed(watch, [2.0] * 20 + [1.0] * 20 + [4.1] * 20)
    with pytest.raises(
        UserError,
        match=r"R: the loss has exploded: the mean of its terms over steps 41 to 60 is 4\.1, the lowest before was 1; "
        r"the last gradient norms: 2\.05, 2\.05, 2\.05, 2\.05, 2\.05\. .*lower the learning rate",
    ):
        watch.take()
    watch = Watch(world.settings("R", explosion=0.0))
    feed(watch, [1.0] * 20 + [1e6] * 40)
    watch.take()


def test_another_weighting_is_no_explosion(world: Any) -> None:
    watch = Watch(world.settings("R", explosion=4.0))
    feed(watch, [1.0] * 30)
    feed(watch, [90.0] * 40, 31, {"affinity": 90.0})
    watch.take()
    # Unweighted it was 1 all along: what it is judged by.
    with pytest.raises(UserError, match=r"steps 61 to 80 is 50\.5, the lowest before was 1"):
        feed(watch, [9000.0] * 21, 71, {"affinity": 90.0})


def test_an_explosion_is_seen_while_weights_change(world: Any) -> None:
    watch = Watch(world.settings("R", explosion=4.0))

    def run() -> None:
        for step in range(1, 82):
            feed(watch, [(1.0 if step < 50 else 50.0) * (1 + step / 80)], step, {"affinity": 1 + step / 80})

    with pytest.raises(UserError, match="exploded"):
        run()


def test_fp16_that_skips_every_step_is_no_training(world: Any) -> None:
    watch = Watch(world.settings("R", precision="fp16"))
    values = {"loss": torch.tensor(1.0), "affinity": torch.tensor(1.0), "grad_norm": torch.tensor(math.nan)}
    for step in range(1, 20):
        watch.add(step, values, {"affinity": 1.0})
    other = Watch(world.settings("R", precision="fp16"))
    other.restore(json.loads(json.dumps(watch.state())))
    other.add(20, values, {"affinity": 1.0})
    with pytest.raises(UserError, match="grad_norm is nan at step 20"):
        other.take()


def test_an_explosion_stops_a_run_before_its_checkpoint(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses are made to leap up after 25 steps; what is there is from before."""
    step = Run.step

    def leaping(self: Run, batch: Any) -> dict[str, Tensor]:
        values = step(self, batch)
        return values | {"affinity": values["affinity"] * (100 if batch.step > 25 else 1)}

    monkeypatch.setattr(Run, "step", leaping)
    with pytest.raises(UserError, match=r"the loss has exploded: the mean of its terms over steps 21 to 40 is"):
        train(world.settings(tmp_path / "run", steps=45, log_every=10, checkpoint_every=20))
    assert Checkpoints(tmp_path / "run", 2).steps() == [20]
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["step"] == 30


def test_figures_are_read_one_step_late(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host does not wait for the step that it has just begun."""
    from distill.training import monitor as module  # noqa: PLC0415

    read: list[int] = []
    numbers = module.Figures.numbers

    def noted(self: Any) -> dict[str, float]:
        read.append(self.step)
        return numbers(self)

    monkeypatch.setattr(module.Figures, "numbers", noted)
    watch = Watch(world.settings("R"))
    for step in (1, 2, 3):
        # As of a loss whose weight changes at every step.
        watch.add(step, {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}, {"affinity": float(step)})
        assert read == list(range(1, step))
    watch.take()
    assert read == [1, 2, 3]


def test_a_watch_goes_on_where_it_was(world: Any) -> None:
    one, other = Watch(world.settings("R")), Watch(world.settings("R"))
    random = np.random.default_rng(0)
    losses = random.uniform(1, 3, 60).tolist()
    feed(one, losses[:33])
    other.restore(json.loads(json.dumps(one.state())))
    for watch in (one, other):
        feed(watch, losses[33:], 34)
    mean = float(np.float32(losses).astype(np.float64).mean())
    expected = {"loss": mean, "affinity": mean, "grad_norm": mean / 2, "logit_scale": 10.0}
    means = one.take()
    assert means == other.take()
    assert means == pytest.approx(expected, rel=1e-12)
    assert one.state() == other.state()


def test_a_loader_that_cannot_keep_up_is_named_once(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every batch is made to have been waited for all the time."""
    wait = Loader._wait

    def slow(self: Loader, *arguments: Any) -> Any:
        batch = wait(self, *arguments)
        self.waited += 1e6
        return batch

    monkeypatch.setattr(Loader, "_wait", slow)
    with caplog.at_level(logging.WARNING, "distill.training.train"):
        train(world.settings(tmp_path / "run", log_every=2))
    starved = [(step, kind) for step, kind, _ in events(tmp_path / "run")]
    # Not at the first line: the wait before it is for the first batch.
    assert starved == [(4, "starved")]
    assert [record.getMessage() for record in caplog.records] == [events(tmp_path / "run")[0][2]]
    assert "100% of the time since step 2 went by waiting for batches" in caplog.text


def test_a_loader_that_keeps_up_is_not(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loader, "waited", property(lambda _: 0.0, lambda *_: None), raising=False)
    train(world.settings(tmp_path / "run", log_every=2))
    assert events(tmp_path / "run") == []
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["measured"]["waited"] for line in lines] == [0.0] * 4


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    save = Checkpoints.save

    def spoiled(self: Checkpoints, step: int, *state: Any) -> None:
        if step == 6:
            self.wait()
            (out / "checkpoints").rename(tmp_path / "away")
            (out / "checkpoints").write_text("")
        save(self, step, *state)

    monkeypatch.setattr(Checkpoints, "save", spoiled)
    with pytest.raises(UserError, match=r"run/checkpoints: a checkpoint could not be written"):
        train(world.settings(out, checkpoint_every=3))
    assert not (out / "done.json").exists()
    assert not (out / "model").exists()
    # With room again it goes on.
    monkeypatch.undo()
    (out / "checkpoints").unlink()
    (tmp_path / "away").rename(out / "checkpoints")
    assert Checkpoints(out, 2).steps() == [3]
    assert train(world.settings(out, checkpoint_every=3)).steps == 8


FIGURE = "eval/retrieval/image_to_text/R@1"


def test_the_best_checkpoint_is_kept_and_delivered(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With figures that are best in the middle; what is evaluated, and delivered, is the average of the weights."""
    from distill.training.in_run import InRun  # noqa: PLC0415

    figures = iter([1.0, 5.0, 5.0, 2.0])
    seen: list[dict[str, Tensor]] = []

    def given(_: Any, model: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        model.eval()
        return {FIGURE: next(figures), "eval/other": 0.0}

    monkeypatch.setattr(InRun, "__call__", given)
    evaluation = EvaluationSettings(on=world.shards, every=2, best=FIGURE)
    settings = world.settings(
        tmp_path / "run", evaluation=evaluation, keep=1, checkpoint_every=100, optimiser={"ema": 0.5}
    )
    result = train(settings)
    assert result.best == {"step": 4, "metric": FIGURE, "value": 5.0}
    assert Checkpoints(tmp_path / "run", 1).steps() == [4, 8]
    from clip_models import load_model  # noqa: PLC0415

    for folder, expected in (("best", seen[1]), ("model", seen[3])):
        weights = load_model(str(tmp_path / "run" / folder)).model.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if FIGURE in line]
    assert [(line["step"], line[FIGURE]) for line in lines] == [(2, 1.0), (4, 5.0), (6, 5.0), (8, 2.0)]
    assert json.loads((tmp_path / "run" / "done.json").read_text())["best"] == result.best


@pytest.mark.parametrize("figure", ["eval/zero_shot/top1", "eval/retrieval/text_to_image/mean_rank"])
def test_a_figure_that_the_evaluation_does_not_have_or_that_is_better_low_is_refused(world: Any, figure: str) -> None:
    with pytest.raises(UserError, match=rf"evaluation.best is '{figure}', it must be one of .*{FIGURE}"):
        refuse_unknown_figure(figure, open_by_name([world.shards], SetSettings()))


def test_an_evaluation_changes_nothing_of_the_training(world: Any, tmp_path: Path) -> None:
    evaluation = EvaluationSettings(on=world.shards, every=3, batch_size=7)
    plain = world.settings(tmp_path / "plain", patch_mask=0.5)
    train(plain)
    train(world.settings(tmp_path / "run", patch_mask=0.5, evaluation=evaluation))
    files = [tmp_path / name / "model" / "open_clip_model.safetensors" for name in ("plain", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines if FIGURE in line] == [3, 6, 8]
    assert [line["loss"] for line in lines if "loss" in line] == [
        line["loss"] for line in read_log(tmp_path / "plain" / "log.jsonl")
    ]
