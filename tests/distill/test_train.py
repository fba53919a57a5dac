"""A run killed anywhere ends where it would have ended, byte for byte; and it refuses to become another run."""

from __future__ import annotations

import json
import math
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_models import create_student, load_model
from distill.checkpoint import Checkpoints
from distill.logs import RunLog, read_log
from distill.settings import RunSettings
from distill.train import Run, train
from shards import Dataset, InProcess, UserError
from teacher_cache import TeacherCache, ViewPolicy
from teacher_cache.build import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource

Snapshot = Callable[[str | Path], dict[str, bytes]]


def outcome(out: Path) -> dict[str, bytes]:
    """What a run leaves, bit by bit: the student, the last two checkpoints, the log."""
    names = [path for folder in ("model", "checkpoints") for path in (out / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in [*names, out / "log.jsonl", out / "done.json"]}


def board(out: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's own reading of a run: scalar → (step, value)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

        events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def age(out: Path) -> None:
    """As if what TensorBoard has of a run were of long ago: it orders files by the second in their names."""
    for path in (out / "tensorboard").glob("events.out.tfevents.*"):
        parts = path.name.split(".")
        path.rename(path.with_name(".".join([*parts[:3], f"{int(parts[3]) - 3600}", *parts[4:]])))


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that runs take from here on."""
    taken: list[int] = []
    step = Run.step

    def noted(self: Run, batch: Any, targets: Any) -> Any:
        taken.append(batch.step)
        return step(self, batch, targets)

    monkeypatch.setattr(Run, "step", noted)
    return taken


# --------------------------------------------------------------------------------------------------------- resumption

BATCH_NORM = {"vision_layers": [1, 1, 1, 1], "width": 16}
STUDENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    # Loss parameters, three terms, a pinned scale, no clipping.
    "projections": (
        {},
        {
            "losses": {"affinity": 1.0, "feature": 50.0, "contrastive": 0.1},
            "student_scale": 50.0,
            "optimiser": {"clip_norm": 0.0},
        },
    ),
    "batch norm": (BATCH_NORM, {}),
    # The scaler's first scale overflows, so the first steps are skipped.
    "fp16": ({}, {"precision": "fp16", "losses": {"feature": 2000.0}}),
    # Random within a step; a bias that the losses do not reach.
    "dropout": ({"custom_text": True, "init_logit_bias": -10.0, "patch_dropout": 0.5}, {"precision": "bf16"}),
}


@pytest.fixture
def unstarted(name: str, world: Any, tmp_path: Path, save_student: Callable[..., str]) -> RunSettings:
    model, run = STUDENTS[name]
    path = tmp_path / "student.json"
    save_student(path, **{key: value for key, value in model.items() if key != "patch_dropout"})
    if "patch_dropout" in model:
        config = json.loads(path.read_text())
        config["vision_cfg"]["patch_dropout"] = model["patch_dropout"]
        path.write_text(json.dumps(config))
    settings: RunSettings = world.settings(tmp_path / "whole", student=str(path), **run)
    return settings


@pytest.mark.parametrize("name", STUDENTS)
def test_a_run_resumed_from_any_step_ends_in_the_same_bytes(
    name: str, unstarted: RunSettings, monkeypatch: pytest.MonkeyPatch, steps_taken: list[int]
) -> None:
    settings, tmp_path = unstarted, Path(unstarted.out).parent
    save = Checkpoints.save

    def save_and_copy(self: Checkpoints, step: int, *state: Any) -> None:
        save(self, step, *state)
        shutil.copytree(tmp_path / "whole", tmp_path / f"after {step}")

    monkeypatch.setattr(Checkpoints, "save", save_and_copy)
    train(settings)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert steps_taken == list(range(8))
    expected = outcome(tmp_path / "whole")
    assert [line["step"] for line in read_log(tmp_path / "whole" / "log.jsonl")] == [3, 6, 8]
    for step in range(1, 9):
        out = tmp_path / f"after {step}"
        steps_taken.clear()
        result = train(replace(settings, out=str(out)))
        assert steps_taken == list(range(step, 8))
        assert (result.steps, result.model) == (8, str(out / "model"))
        assert (result.samples_per_second is None) == (step == 8)
        assert outcome(out) == expected, step
    assert_it_learned_what_it_should(name, settings)


def assert_it_learned_what_it_should(name: str, settings: RunSettings) -> None:
    """That the cases are what they say: else equal bytes would prove little."""
    out = Path(settings.out)
    start, _ = create_student(settings.student, 0)
    before, after = start.state_dict(), load_file(out / "model" / "open_clip_model.safetensors")
    assert not torch.equal(before["visual.conv1.weight"], after["visual.conv1.weight"])
    newest, extra = (load_file(out / "checkpoints" / "00000008" / f"{part}.safetensors") for part in ("model", "loss"))
    assert all(torch.equal(newest[key], after[key]) for key in after)
    state = json.loads((out / "checkpoints" / "00000008" / "state.json").read_text())
    if name == "projections":
        first = Run(settings).loss.state_dict()
        assert {key: value.shape for key, value in extra.items()} == {
            "losses.feature.image_map.weight": (40, 24),
            "losses.feature.image_map.bias": (40,),
            "losses.feature.text_map.weight": (40, 24),
            "losses.feature.text_map.bias": (40,),
        }
        assert not any(torch.equal(first[key], value) for key, value in extra.items())
        assert not any("map" in key for key in after)
    else:
        assert bool(extra) == (name == "fp16")
    if name == "batch norm":
        assert int(after["visual.bn1.num_batches_tracked"]) == 8
        assert not torch.equal(after["visual.bn1.running_mean"], torch.zeros_like(after["visual.bn1.running_mean"]))
    if name == "fp16":
        assert 1 <= state["scaler"]["scale"] < 65536, "no step was skipped"
    if name == "dropout":
        assert float(after["logit_bias"]) == -10


KILLED = """
from distill.settings import OptimiserSettings, RunSettings
from distill.train import train

def work(number):
    out = {base!r} + str(number)
    tick_at_files(out)
    optimiser = OptimiserSettings(lr=3e-3, warmup=3)
    train(RunSettings(
        shards={shards!r}, cache={cache!r}, student={student!r}, out=out, steps=8, batch_size=6, log_every=2,
        checkpoint_every=3, optimiser=optimiser,
    ))
"""


def test_a_run_killed_anywhere_ends_in_the_same_bytes(
    world: Any, tmp_path: Path, kill_often: Callable[[str, int], list[int]], snapshot: Snapshot
) -> None:
    base = str(tmp_path / "run")
    times = 10
    kill_often(KILLED.format(base=base, shards=world.shards, cache=world.cache, student=world.student), times)
    expected = outcome(Path(base + "0"))
    scalars = board(Path(base + "0"))
    assert [step for step, _ in scalars["loss"]] == [2, 4, 6, 8]
    begun = set()
    for number in range(1, times + 1):
        out = Path(f"{base}{number}")
        begun.add(tuple(Checkpoints(out).steps()))
        age(out)
        train(world.settings(out, checkpoint_every=3, log_every=2))
        assert outcome(out) == expected, number
        assert board(out) == scalars, number
        assert not [name for name in snapshot(out / "checkpoints") if name.startswith(".")]
    assert begun >= {(), (3,), (3, 6)}, begun


def test_a_kill_leaves_no_line_twice_and_none_of_a_future_that_did_not_happen(world: Any, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "run", log_every=1, checkpoint_every=4)
    train(replace(settings, out=str(tmp_path / "whole")))
    train(settings)
    out = tmp_path / "run"
    # As if killed at step 7: one checkpoint, lines beyond it, the last of them cut off.
    age(out)
    (out / "done.json").unlink()
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoints" / "00000008")
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(lines[:6]) + lines[6][:20])
    train(settings)
    assert outcome(out) == outcome(tmp_path / "whole")
    scalars = board(out)
    logged = read_log(out / "log.jsonl")
    assert set(scalars) == {"loss", "affinity", "grad_norm", "logit_scale", "lr"}
    for name, events in scalars.items():
        assert [step for step, _ in events] == list(range(1, 9))
        assert [value for _, value in events] == pytest.approx([line[name] for line in logged], rel=1e-6)


def test_a_run_that_is_done_returns_at_once(
    world: Any, tmp_path: Path, steps_taken: list[int], snapshot: Snapshot
) -> None:
    settings = world.settings(tmp_path / "run", steps=3)
    first = train(settings)
    before = snapshot(settings.out)
    assert steps_taken == [0, 1, 2]
    again = train(settings)
    assert again == replace(first, samples_per_second=None)
    assert steps_taken == [0, 1, 2]
    assert snapshot(settings.out) == before
    moved = tmp_path / "moved"
    Path(settings.out).rename(moved)
    assert train(replace(settings, out=str(moved))).model == str(moved / "model")


def test_a_deleted_student_comes_back(world: Any, tmp_path: Path, steps_taken: list[int], snapshot: Snapshot) -> None:
    settings = world.settings(tmp_path / "run", steps=3)
    train(settings)
    before = snapshot(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "model")
    steps_taken.clear()
    result = train(settings)
    assert steps_taken == []
    assert snapshot(result.model) == before
    assert load_model(result.model).config["model_cfg"]["embed_dim"] == 24


def test_only_two_checkpoints_stay(world: Any, tmp_path: Path) -> None:
    train(world.settings(tmp_path / "run", checkpoint_every=3))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["00000006", "00000008"]


def test_what_is_watched_may_change_on_resume_and_data_may_move(
    world: Any, tmp_path: Path, steps_taken: list[int]
) -> None:
    settings = world.settings(tmp_path / "run", checkpoint_every=4)
    train(settings)
    (tmp_path / "run" / "done.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000008")
    before = (tmp_path / "run" / "model" / "open_clip_model.safetensors").read_bytes()
    for name in ("shards", "cache"):
        shutil.copytree(getattr(settings, name), tmp_path / name)
    shutil.copy(settings.student, tmp_path / "renamed.json")
    steps_taken.clear()
    moved = {"shards": tmp_path / "shards", "cache": tmp_path / "cache", "student": tmp_path / "renamed.json"}
    paths = {name: str(path) for name, path in moved.items()}
    train(replace(settings, log_every=1, checkpoint_every=2, teacher_name="teach", **paths))
    assert steps_taken == [4, 5, 6, 7]
    assert (tmp_path / "run" / "model" / "open_clip_model.safetensors").read_bytes() == before


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def begun(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = world.settings(tmp_path_factory.mktemp("begun") / "run", steps=2)
    train(settings)
    return settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"settings\.seed was 0, now 1"),
        ({"batch_size": 5}, r"settings\.batch_size was 6, now 5"),
        ({"steps": 3}, r"settings\.steps was 2, now 3"),
        ({"losses": {"affinity": 0.5}}, r"settings\.losses\.affinity was 1\.0, now 0\.5"),
        ({"losses": {"feature": 1.0}}, r"settings\.losses\.affinity was 1\.0, now null"),
        ({"precision": "bf16"}, r'settings\.precision was "fp32", now "bf16"'),
        ({"student_scale": 50.0}, r"settings\.student_scale was null, now 50\.0"),
        ({"optimiser": {"lr": 1e-3}}, r"settings\.optimiser\.lr was 0\.003, now 0\.001"),
        ({"optimiser": {"betas": (0.9, 0.9)}}, r"settings\.optimiser\.betas was \[0\.9, 0\.98\], now \[0\.9, 0\.9\]"),
        ({"cache": None}, r"cache was \{.*\}, now null"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    world: Any, begun: Any, changes: dict[str, Any], message: str, snapshot: Snapshot
) -> None:
    before = snapshot(begun.out)
    with pytest.raises(UserError, match=rf"begun.*/run: this folder holds another run: .*{message}.*another --out"):
        train(world.settings(begun.out, **{"steps": 2, **changes}))
    assert snapshot(begun.out) == before


def test_other_data_and_students_are_refused(
    world: Any,
    begun: Any,
    tmp_path: Path,
    make_dataset: Callable[..., Dataset],
    save_student: Callable[..., str],
) -> None:
    deeper = save_student(tmp_path / "deeper.json", layers=2)
    with pytest.raises(UserError, match=r"student\.model_cfg\.text_cfg\.layers was 1, now 2"):
        train(replace(begun, student=deeper))
    other = make_dataset(tmp_path / "other", (9, 0, 12, 5), seed=3)
    with pytest.raises(UserError, match="was cached from content"):
        train(replace(begun, shards=str(other.folder)))
    policy = ViewPolicy(scale=(0.5, 1.0), flip=0.5)
    cache = str(tmp_path / "cache")
    build = BuildSettings(
        shards=str(other.folder),
        cache=cache,
        teachers=(TeacherSpec(world.teacher, "teach"),),
        views=3,
        policy=policy,
        batch_size=64,
    )
    build_cache(build, InProcess())
    with pytest.raises(UserError, match=r'another run: cache\.content was "[0-9a-f]{16}", now "[0-9a-f]{16}"'):
        train(replace(begun, shards=str(other.folder), cache=cache))
    more = str(shutil.copytree(world.cache, tmp_path / "more"))
    # Captions that the run does not read are none of its business.
    told = replace(build, shards=world.shards, cache=more, captions=(CaptionSource.parse("json:caption"),))
    build_cache(told, InProcess())
    train(replace(begun, cache=more))
    build_cache(replace(told, views=4), InProcess())
    with pytest.raises(UserError, match=r'another run: cache\.content was "[0-9a-f]{16}", now "[0-9a-f]{16}"'):
        train(replace(begun, cache=more))


def test_what_cannot_be_trained_on_is_said_at_once(
    world: Any, tmp_path: Path, save_student: Callable[..., str]
) -> None:
    with pytest.raises(UserError, match="26 samples do not fill one batch of 27"):
        train(world.settings(tmp_path / "a", batch_size=27))
    with pytest.raises(UserError, match="no teacher cache here"):
        train(world.settings(tmp_path / "b", cache=str(tmp_path)))
    with pytest.raises(UserError, match="no dataset here"):
        train(world.settings(tmp_path / "c", shards=str(tmp_path)))
    path = tmp_path / "oblong.json"
    save_student(path)
    config = json.loads(path.read_text())
    config["vision_cfg"]["image_size"] = [32, 64]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"sees \[32, 64\] pixels; only square"):
        train(world.settings(tmp_path / "d", student=str(path)))
    assert not any((tmp_path / name).exists() for name in "abcd")


# ----------------------------------------------------------------------------------------------------- what a step does


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
        values = run.step(batch, run.cached_targets)
        losses.append(float(values["loss"]))
        norms.append(float(values["grad_norm"]))
    bad = next(step for step in range(8) if not math.isfinite(losses[step] + norms[step]))
    what = "loss" if not math.isfinite(losses[bad]) else "grad_norm"
    assert 0 < bad < 7
    with pytest.raises(
        UserError, match=rf"/run: {what} is (nan|inf) at step {bad + 1}\. Lower --lr \(now 1e\+30\)"
    ) as caught:
        train(settings)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")], caught
    assert not (tmp_path / "run" / "done.json").exists()
    for line in read_log(tmp_path / "run" / "log.jsonl"):
        assert line["step"] <= bad
        assert all(math.isfinite(value) for value in line.values())
    for step in Checkpoints(tmp_path / "run").steps():
        assert step <= bad


def test_steps_that_fp16_skips_leave_the_log_plain_json(world: Any, tmp_path: Path) -> None:
    train(world.settings(tmp_path / "run", precision="fp16", log_every=1, losses={"feature": 2000.0}))
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert "grad_norm" not in lines[0], "the first step should have overflowed"
    assert "grad_norm" in lines[-1]


def test_a_pinned_scale_is_pinned_from_the_first_step_whatever_it_is(world: Any, tmp_path: Path) -> None:
    for scale in (50.0, 250.0, 0.5):
        settings = world.settings(tmp_path / str(scale), student_scale=scale, log_every=1, steps=3)
        run = Run(settings)
        embeddings = run.embed(run.loader.batch(0))
        assert float(embeddings.logit_scale) == pytest.approx(scale, rel=1e-5)
        result = train(settings)
        log = read_log(Path(settings.out) / "log.jsonl")
        assert [line["logit_scale"] for line in log] == pytest.approx([scale] * 3, rel=1e-5)
        saved = load_file(Path(result.model) / "open_clip_model.safetensors")["logit_scale"]
        assert float(saved) == pytest.approx(math.log(scale), rel=1e-5)


@pytest.mark.parametrize(("start", "end"), [(9.0, math.log(100)), (-3.0, 0.0)])
def test_a_learned_scale_stays_between_1_and_100(world: Any, tmp_path: Path, start: float, end: float) -> None:
    run = Run(world.settings(tmp_path))
    with torch.no_grad():
        run.model.logit_scale.fill_(start)
    values = run.step(run.loader.batch(0), run.cached_targets)
    assert float(run.model.logit_scale.detach()) == pytest.approx(end, abs=1e-6)
    assert float(values["logit_scale"]) == pytest.approx(math.exp(end), rel=1e-6)


def test_a_learned_scale_is_learned_and_not_decayed(world: Any, tmp_path: Path) -> None:
    run = Run(world.settings(tmp_path, optimiser={"weight_decay": 0.9, "lr": 1e-2, "warmup": 0}))
    before = float(run.model.logit_scale.detach())
    run.step(run.loader.batch(0), run.cached_targets)
    # Adam's first step is the learning rate itself, whatever the gradient.
    assert abs(float(run.model.logit_scale.detach()) - before) == pytest.approx(1e-2, rel=1e-3)


def test_targets_are_the_caches_rows_at_the_teachers_or_the_pinned_scale(world: Any, tmp_path: Path) -> None:
    cache = TeacherCache.open(world.cache, world.dataset)
    for pinned, expected in ((None, 30.0), (64.0, 64.0)):
        run = Run(world.settings(tmp_path, teacher_scale=pinned))
        batch = run.loader.batch(2)
        targets = run.cached_targets(batch)
        assert targets is not None
        assert targets.logit_scale == pytest.approx(expected, rel=1e-6)
        where = {
            key: (place, row) for place, shard in enumerate(world.dataset.shards) for row, key in enumerate(shard.keys)
        }
        assert np.array_equal(targets.text.numpy(), cache.text(np.array([where[key] for key in batch.keys])))
    plain = Run(world.settings(tmp_path, cache=None))
    assert plain.cached_targets(plain.loader.batch(0)) is None


def test_embeddings_are_the_students_of_normalised_pixels(world: Any, tmp_path: Path) -> None:
    run = Run(world.settings(tmp_path))
    batch = run.loader.batch(1)
    with torch.no_grad():
        got = run.embed(batch)
        mean, std = (np.array(run.config["preprocess_cfg"][name]) for name in ("mean", "std"))
        pixels = torch.from_numpy((batch.images.numpy() / 255 - mean) / std).permute(0, 3, 1, 2)
        model = run.model.double()
        assert (got.image - model.encode_image(pixels, normalize=True)).abs().max() < 1e-6
        assert (got.text - model.encode_text(batch.tokens, normalize=True)).abs().max() < 1e-6


def test_the_gradient_is_cut_to_its_norm(world: Any, tmp_path: Path) -> None:
    """Seen in Adam's first moment, which after one step is (1 - beta1) times the gradient."""

    def moment(clip: float) -> tuple[float, float]:
        run = Run(world.settings(tmp_path, optimiser={"clip_norm": clip}))
        values = run.step(run.loader.batch(0), run.cached_targets)
        moments = [fields["exp_avg"] for fields in run.optimiser.state.values()]
        total = math.sqrt(sum(float((moment.double() ** 2).sum()) for moment in moments))
        return total / 0.1, float(values["grad_norm"])

    free, norm = moment(0.0)
    assert free == pytest.approx(norm, rel=1e-4)
    cut, reported = moment(norm / 4)
    assert cut == pytest.approx(norm / 4, rel=1e-4)
    assert reported == pytest.approx(norm, rel=1e-6)
    loose, _ = moment(norm * 4)
    assert loose == pytest.approx(norm, rel=1e-4)


def test_epochs_become_steps_and_logs_say_what_was_done(world: Any, tmp_path: Path) -> None:
    settings = world.settings(
        tmp_path / "run", steps=None, epochs=1.5, log_every=1, optimiser={"lr": 0.01, "warmup": 2}
    )
    result = train(settings)
    assert result.steps == 6  # four batches of 6 in 26 samples
    log = read_log(tmp_path / "run" / "log.jsonl")
    rates = [0.005, 0.01] + [0.005 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert [line["lr"] for line in log] == pytest.approx(rates, rel=1e-9)
    assert result.loss == log[-1]["loss"] == log[-1]["affinity"]
    assert result.samples_per_second is not None
    resolved = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert resolved["settings"]["epochs"] == 1.5
    assert resolved["identity"]["steps"] == 6
    assert resolved["identity"]["settings"]["losses"] == {"affinity": 1.0}


def test_log_lines_are_means_over_their_interval(world: Any, tmp_path: Path) -> None:
    each = world.settings(tmp_path / "each", log_every=1)
    fours = world.settings(tmp_path / "fours", log_every=5)
    train(each)
    train(fours)
    singles = read_log(tmp_path / "each" / "log.jsonl")
    means = read_log(tmp_path / "fours" / "log.jsonl")
    assert [line["step"] for line in means] == [5, 8]
    for line, part in zip(means, (singles[:5], singles[5:]), strict=True):
        for name in ("loss", "grad_norm", "logit_scale"):
            assert line[name] == pytest.approx(np.mean([single[name] for single in part]), rel=1e-12)


def test_distillation_brings_the_student_to_the_teacher(world: Any, tmp_path: Path) -> None:
    """The loss minus the teacher's own entropy is what can be learned; most of it is."""
    settings = world.settings(
        tmp_path / "run", steps=120, log_every=10, checkpoint_every=1000, optimiser={"lr": 3e-3, "weight_decay": 0.0}
    )
    run = Run(settings)
    floors = []
    for step in range(4):
        targets = run.cached_targets(run.loader.batch(step))
        assert targets is not None
        logits = targets.logit_scale * targets.image.double() @ targets.text.double().T
        entropies = [-(way.softmax(1) * way.log_softmax(1)).sum(1).mean() for way in (logits, logits.T)]
        floors.append(float(sum(entropies)) / 2)
    train(settings)
    losses = [line["loss"] - float(np.mean(floors)) for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0] / 2
    assert losses[-1] > -0.05


def test_training_without_a_cache_is_plain_clip(world: Any, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "plain", cache=None, views=3, log_every=1, steps=4)
    train(settings)
    (line, *_) = read_log(tmp_path / "plain" / "log.jsonl")
    assert set(line) == {"step", "loss", "contrastive", "grad_norm", "logit_scale", "lr"}
    # Untrained, and 6 captions to choose from.
    assert line["loss"] == pytest.approx(math.log(6), abs=1.0)


def test_a_log_cut_in_the_middle_of_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write(1, {"loss": 2.0})
        log.write(2, {"loss": 1 / 3})
    path = tmp_path / "log.jsonl"
    assert read_log(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1 / 3}]
    path.write_text(path.read_text()[:-8])
    assert read_log(path) == [{"step": 1, "loss": 2.0}]
    assert read_log(tmp_path / "none.jsonl") == []


def test_a_line_is_on_disk_for_both_readers_when_it_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        (events,) = (tmp_path / "tensorboard").iterdir()
        for step in range(1, 40):
            before = events.stat().st_size
            log.write(step, {"loss": step / 2, "lr": 0.1})
            # A scalar is a record of at least 12 bytes around its protocol buffer.
            assert events.stat().st_size >= before + 2 * 16, step
            assert read_log(tmp_path / "log.jsonl")[-1]["step"] == step
    assert board(tmp_path)["loss"] == [(step, step / 2) for step in range(1, 40)]
