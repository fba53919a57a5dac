"""A run killed anywhere ends where it would have ended, byte for byte; and it refuses to become another run."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clip_models import create_student, load_model
from distill.run_folder import read_log
from distill.settings import EvaluationSettings, LossTerm, RunSettings
from distill.training.checkpoint import Checkpoints
from distill.training.run import Run
from distill.training.train import train
from shards import Dataset, InProcess, UserError
from teacher_cache import ViewPolicy
from teacher_cache.building import BuildSettings, TeacherSpec, build_cache
from teacher_cache.captions import CaptionSource

Snapshot = Callable[[str | Path], dict[str, bytes]]


def without_measured(out: Path) -> list[dict[str, Any]]:
    """The log's lines less what differs from run to run, which every line of training has."""
    lines = read_log(out / "log.jsonl")
    measured = [line.pop("measured") for line in lines if "loss" in line]
    names = {"samples_per_second", "waited", "memory_gb", "seconds"}
    assert all(set(found) == names and found["samples_per_second"] > 0 for found in measured)
    return lines


def outcome(out: Path, checkpoints: str = "checkpoints") -> dict[str, Any]:
    """What a run leaves, bit by bit: the students, the last checkpoints (or one of them), the log."""
    names = [path for name in ("model", "best", checkpoints) for path in (out / name).rglob("*") if path.is_file()]
    found: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in [*names, out / "done.json"]}
    return found | {"log": json.dumps(without_measured(out))}


def board(out: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's own reading of a run: scalar → (step, value), of all that is not measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

        events = EventAccumulator(str(out / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("measured/")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def age(out: Path) -> None:
    """As if what TensorBoard has of a run were of long ago: it orders files by the second in their names."""
    for path in (out / "tensorboard").glob("events.out.tfevents.*"):
        parts = path.name.split(".")
        path.rename(path.with_name(".".join([*parts[:3], f"{int(parts[3]) - 3600}", *parts[4:]])))


def begin_again_after(out: Path, step: int) -> None:
    """As if a finished run had been killed when the checkpoint at `step` was its newest."""
    age(out)
    (out / "done.json").unlink()
    shutil.rmtree(out / "model")
    for later in Checkpoints(out, 2).steps():
        if later > step:
            shutil.rmtree(out / "checkpoints" / f"{later:08d}")


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that runs take from here on."""
    taken: list[int] = []
    step = Run.step

    def noted(self: Run, batch: Any) -> Any:
        taken.append(batch.step)
        return step(self, batch)

    monkeypatch.setattr(Run, "step", noted)
    return taken


BATCH_NORM = {"vision_layers": [1, 1, 1, 1], "width": 16}
STUDENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    # Loss parameters, three terms, one's weight in motion, an average of the weights, a pinned scale, no clipping.
    "projections": (
        {},
        {
            "losses": {"affinity": 1.0, "fd": LossTerm(weight=((0.2, 50.0), (0.6, 5.0))), "contrastive": 0.1},
            "student_scale": 50.0,
            "optimiser": {"clip_norm": 0.0, "ema": 0.7},
        },
    ),
    "batch norm": (BATCH_NORM, {"micro_batches": 2}),
    # The scaler's first scale overflows, so the first steps are skipped.
    "fp16": ({}, {"precision": "fp16", "losses": {"fd": 2000.0}}),
    # Random within a step; a bias that the losses do not reach.
    "dropout": (
        {"custom_text": True, "init_logit_bias": -10.0},
        {"precision": "bf16", "patch_mask": 0.5, "micro_batches": 2},
    ),
}


@pytest.fixture
def unstarted(name: str, world: Any, tmp_path: Path, save_student: Callable[..., str]) -> RunSettings:
    model, run = STUDENTS[name]
    student = save_student(tmp_path / "student.json", **model)
    settings: RunSettings = world.settings(tmp_path / "whole", student=student, **run)
    return settings


@pytest.mark.parametrize("name", STUDENTS)
def test_a_run_resumed_from_any_step_ends_in_the_same_bytes(
    name: str, unstarted: RunSettings, monkeypatch: pytest.MonkeyPatch, steps_taken: list[int]
) -> None:
    settings, tmp_path = unstarted, Path(unstarted.out).parent
    save = Checkpoints.save

    def save_and_copy(self: Checkpoints, step: int, *state: Any) -> None:
        save(self, step, *state)
        self.wait()
        shutil.copytree(tmp_path / "whole", tmp_path / f"after {step}")

    monkeypatch.setattr(Checkpoints, "save", save_and_copy)
    train(settings)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert steps_taken == list(range(8))
    last = "checkpoints/00000008"
    expected = outcome(tmp_path / "whole", last)
    assert len([name for name in expected if name.startswith(last)]) == (5 if "ema" in str(STUDENTS[name]) else 4)
    assert [line["step"] for line in read_log(tmp_path / "whole" / "log.jsonl")] == [3, 6, 8]
    for step in range(1, 9) if name in ("plain", "projections") else (2, 3, 5, 8):
        out = tmp_path / f"after {step}"
        steps_taken.clear()
        result = train(replace(settings, out=str(out), checkpoint_every=8))
        assert steps_taken == list(range(step, 8))
        assert (result.steps, result.model) == (8, str(out / "model"))
        assert (result.samples_per_second is None) == (step == 8)
        assert outcome(out, last) == expected, step
    assert_it_learned_what_it_should(name, settings)


def assert_it_learned_what_it_should(name: str, settings: RunSettings) -> None:
    """That the cases are what they say: else equal bytes would prove little."""
    out = Path(settings.out)
    start, _ = create_student(settings.student, 0)
    before, after = start.state_dict(), load_file(out / "model" / "open_clip_model.safetensors")
    assert not torch.equal(before["visual.conv1.weight"], after["visual.conv1.weight"])
    newest, extra = (load_file(out / "checkpoints" / "00000008" / f"{part}.safetensors") for part in ("model", "loss"))
    assert all(torch.equal(newest[key], after[key]) for key in after) == (name != "projections")
    state = json.loads((out / "checkpoints" / "00000008" / "state.json").read_text())
    if name == "projections":
        first = Run(settings).loss.state_dict()
        assert {key: value.shape for key, value in extra.items()} == {
            "losses.fd.projections.0.image.weight": (40, 24),
            "losses.fd.projections.0.image.bias": (40,),
            "losses.fd.projections.0.text.weight": (40, 24),
            "losses.fd.projections.0.text.bias": (40,),
        }
        assert not any(torch.equal(first[key], value) for key, value in extra.items())
        assert not any("projection" in key and "projections" in key for key in after)
        # Through is step / 7: level up to 0.2, then straight down to 0.6.
        weights = [line["weight/fd"] for line in read_log(out / "log.jsonl")]
        expected = [50.0 - 45.0 * min(1, max(0, (step - 1) / 7 - 0.2) / 0.4) for step in (3, 6, 8)]
        assert weights == pytest.approx(expected, rel=1e-12)
    else:
        assert bool(extra) == (name == "fp16")
    if name == "batch norm":
        # Of the whole batch, once a step, though it is taken in two micro-batches.
        assert int(after["visual.bn1.num_batches_tracked"]) == 8
        assert not torch.equal(after["visual.bn1.running_mean"], torch.zeros_like(after["visual.bn1.running_mean"]))
    if name == "fp16":
        assert 1 <= state["scaler"]["scale"] < 65536, "no step was skipped"
    if name == "dropout":
        assert float(after["logit_bias"]) == -10


KILLED = """
import functools
import open_clip
from distill.settings import OptimiserSettings, RunSettings
from distill.training.train import train

# Read once, not in every process.
open_clip.get_tokenizer = functools.cache(open_clip.get_tokenizer)
open_clip.get_tokenizer("", context_length=16)

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
    """Checkpoints are written while training goes on, so a kill meets both at any point."""
    base = str(tmp_path / "run")
    times = 7
    kill_often(KILLED.format(base=base, shards=world.shards, cache=world.cache, student=world.student), times)
    expected = outcome(Path(base + "0"))
    scalars = board(Path(base + "0"))
    assert [step for step, _ in scalars["loss"]] == [2, 4, 6, 8]
    begun = set()
    for number in range(1, times + 1):
        out = Path(f"{base}{number}")
        begun.add(tuple(Checkpoints(out, 2).steps()))
        age(out)
        train(world.settings(out, checkpoint_every=3, log_every=2))
        assert outcome(out) == expected, number
        assert board(out) == scalars, number
        assert not [name for name in snapshot(out / "checkpoints") if name.startswith(".")]
    # Which ones depends on the machine, as checkpoints are written beside the training.
    assert len(begun) >= 2, begun


def test_a_kill_leaves_no_line_twice_and_none_of_a_future_that_did_not_happen(world: Any, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "run", log_every=1, checkpoint_every=4)
    train(replace(settings, out=str(tmp_path / "whole")))
    train(settings)
    out = tmp_path / "run"
    # As if killed at step 7: one checkpoint, lines beyond it, the last of them cut off.
    begin_again_after(out, 4)
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
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["kind"]) for event in events] == [(4, "resumed")]


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


def test_evaluations_appear_on_the_console(world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluation = EvaluationSettings(on=world.shards, every=2)
    with caplog.at_level("INFO", "distill"):
        train(world.settings(tmp_path / "run", steps=3, evaluation=evaluation))
    said = [line for line in caplog.messages if "R@1" in line]
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if "eval/retrieval/image_to_text/R@1" in line]
    assert [line["step"] for line in lines] == [2, 3]
    for text, line in zip(said, lines, strict=True):
        to_text, to_image = (line[f"eval/retrieval/{way}/R@1"] for way in ("image_to_text", "text_to_image"))
        expected = f"image to text R@1 {to_text:.1f} %, text to image R@1 {to_image:.1f} %"
        assert text == f"after step {line['step']}: {expected}"


def test_a_warm_up_that_is_cut_is_said_in_one_line(
    world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "distill"):
        optimiser = {"warmup": 2000, "warmup_within": 0.25}
        train(world.settings(tmp_path / "run", steps=8, optimiser=optimiser))
    assert [line for line in caplog.messages if "warm-up" in line] == [
        "the warm-up takes 2 steps, 25 % of the run, instead of 2000: give --warmup for another"
    ]
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["facts"]["warmup"] == 2


@pytest.mark.parametrize("deleted", ["model", "best"])
def test_a_deleted_student_comes_back(
    world: Any, tmp_path: Path, steps_taken: list[int], snapshot: Snapshot, deleted: str
) -> None:
    best = EvaluationSettings(on=world.shards, best="eval/retrieval/image_to_text/R@1")
    settings = world.settings(tmp_path / "run", steps=3, evaluation=best)
    result = train(settings)
    before = snapshot(tmp_path / "run" / deleted)
    assert len(before) == 2
    shutil.rmtree(tmp_path / "run" / deleted)
    steps_taken.clear()
    assert train(settings) == replace(result, samples_per_second=None)
    assert steps_taken == []
    assert snapshot(tmp_path / "run" / deleted) == before
    assert load_model(str(tmp_path / "run" / deleted)).config["model_cfg"]["embed_dim"] == 24


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_checkpoints_stay(world: Any, tmp_path: Path, keep: int) -> None:
    train(world.settings(tmp_path / "run", checkpoint_every=2, keep=keep))
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == ["00000004", "00000006", "00000008"][-keep:]


def test_what_is_watched_may_change_on_resume_and_data_may_move(
    world: Any, tmp_path: Path, steps_taken: list[int]
) -> None:
    settings = world.settings(tmp_path / "run", checkpoint_every=4)
    train(settings)
    before = (tmp_path / "run" / "model" / "open_clip_model.safetensors").read_bytes()
    begin_again_after(tmp_path / "run", 4)
    for name in ("shards", "cache"):
        shutil.copytree(getattr(settings, name)[0], tmp_path / name)
    shutil.copy(settings.student, tmp_path / "renamed.json")
    steps_taken.clear()
    moved = {"shards": tmp_path / "shards", "cache": tmp_path / "cache", "student": tmp_path / "renamed.json"}
    paths = {name: str(path) for name, path in moved.items()}
    watched = {"log_every": 1, "checkpoint_every": 2, "keep": 1, "explosion": 0.0, "teachers": ("teach",)}
    evaluated = EvaluationSettings(on=world.shards, every=2, best="eval/retrieval/image_to_text/R@1")
    train(replace(settings, evaluation=evaluated, **watched, **paths))
    assert steps_taken == [4, 5, 6, 7]
    assert (tmp_path / "run" / "model" / "open_clip_model.safetensors").read_bytes() == before


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
        ({"steps": 1}, r"settings\.steps was 2, now 1"),
        ({"losses": {"affinity": 0.5}}, r"settings\.losses\.affinity\.weight was 1\.0, now 0\.5"),
        ({"losses": {"fd": 1.0}}, r"settings\.losses\.affinity was \{.*\}, now null"),
        ({"precision": "bf16"}, r'settings\.precision was "fp32", now "bf16"'),
        ({"student_scale": 50.0}, r"settings\.student_scale was null, now 50\.0"),
        ({"patch_mask": 0.5}, r"settings\.patch_mask was 0\.0, now 0\.5"),
        ({"lock": ("text",)}, r'settings\.lock was \[\], now \["text"\]'),
        ({"optimiser": {"lr": 1e-3}}, r"settings\.optimiser\.lr was 0\.003, now 0\.001"),
        ({"optimiser": {"ema": 0.9}}, r"settings\.optimiser\.ema was null, now 0\.9"),
        ({"optimiser": {"betas": (0.9, 0.9)}}, r"settings\.optimiser\.betas was \[0\.9, 0\.98\], now \[0\.9, 0\.9\]"),
        ({"cache": (), "losses": {"contrastive": 1}}, r"caches was \[.*\], now \[\]"),
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
    with pytest.raises(UserError, match=r'another run: caches was \[.*"[0-9a-f]{16}"\}\], now \[.*"[0-9a-f]{16}"\}\]'):
        train(replace(begun, shards=str(other.folder), cache=cache))
    more = str(shutil.copytree(world.cache, tmp_path / "more"))
    # Captions that the run does not read are none of its business.
    told = replace(build, shards=world.shards, cache=more, captions=(CaptionSource.parse("json:caption"),))
    build_cache(told, InProcess())
    train(replace(begun, cache=more))
    build_cache(replace(told, views=4), InProcess())
    with pytest.raises(UserError, match=r"another run: caches"):
        train(replace(begun, cache=more))


def test_other_first_weights_are_refused(world: Any, tmp_path: Path) -> None:
    """By their content: the same weights may lie elsewhere."""
    one, other = (train(world.settings(tmp_path / f"made {seed}", seed=seed, steps=1)).model for seed in (1, 2))
    settings = world.settings(tmp_path / "run", steps=2, initial=one)
    train(settings)
    train(replace(settings, initial=shutil.copytree(one, tmp_path / "elsewhere").as_posix()))
    with pytest.raises(UserError, match=r'initial was "[0-9a-f]{16}", now "[0-9a-f]{16}"'):
        train(replace(settings, initial=other))
    with pytest.raises(UserError, match=r'initial was "[0-9a-f]{16}", now null'):
        train(replace(settings, initial=None))


def test_what_cannot_be_trained_on_is_said_at_once(
    world: Any, tmp_path: Path, save_student: Callable[..., str]
) -> None:
    with pytest.raises(UserError, match="26 samples do not fill one batch of 27"):
        train(world.settings(tmp_path / "a", batch_size=27))
    with pytest.raises(UserError, match="a batch of 6 cannot be cut evenly for 1 processes with 4 micro-batches"):
        train(world.settings(tmp_path / "a", micro_batches=4))
    with pytest.raises(UserError, match="2 views were asked for, but the cache brings its 3"):
        train(world.settings(tmp_path / "a", views=2))
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


def test_what_is_probably_not_meant_is_said(
    world: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train(world.settings(tmp_path / "made", steps=1)).model
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "avx512_fp16": False})
    train(world.settings(tmp_path / "run", student=made, precision="fp16", steps=1))
    assert f"the student is built as {made} is, with new weights" in caplog.text
    assert "this CPU computes fp16 several times slower than fp32" in caplog.text
    caplog.clear()
    train(world.settings(tmp_path / "on", student=made, initial=made, precision="bf16", steps=1))
    assert "new weights" not in caplog.text
    assert "slower" not in caplog.text
