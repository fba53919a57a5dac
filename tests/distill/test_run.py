"""What a run minimises and what a step does to the student."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from distill.run_folder import read_log
from distill.settings import LossTerm
from distill.training.run import Run
from distill.training.train import train
from shards import UserError
from teacher_cache import TeacherCache


def affinity(student: Any, image: Any, text: Any, scale: float) -> float:
    """TinyCLIP's loss in numpy: soft cross-entropies of both directions, halved."""
    ours = float(student["logit_scale"]) * student["image"] @ student["text"].T
    theirs = scale * image @ text.T

    def crossed(logits: Any, targets: Any) -> float:
        target = np.exp(targets) / np.exp(targets).sum(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return float(-(target * logs).sum(axis=1).mean())

    return (crossed(ours, theirs) + crossed(ours.T, theirs.T)) / 2


def embedded(run: Run, batch: Any, captions: str = "txt") -> dict[str, Any]:
    with torch.no_grad():
        found = run.student(batch.images, batch.tokens)
    rows = {"image": found["image"], "text": found[f"text/{captions}"]}
    named = {name: F.normalize(value.double(), dim=-1) for name, value in rows.items()}
    return {name: value.numpy() for name, value in {**named, "logit_scale": found["logit_scale"].double()}.items()}


def test_a_pinned_scale_is_pinned_from_the_first_step_whatever_it_is(world: Any, tmp_path: Path) -> None:
    for scale in (50.0, 250.0, 0.5):
        settings = world.settings(tmp_path / str(scale), student_scale=scale, log_every=1, steps=3)
        assert float(Run(settings).student.scalars()["logit_scale"]) == pytest.approx(scale, rel=1e-5)
        result = train(settings)
        log = read_log(Path(settings.out) / "log.jsonl")
        assert [line["logit_scale"] for line in log] == pytest.approx([scale] * 3, rel=1e-5)
        saved = load_file(Path(result.model) / "open_clip_model.safetensors")["logit_scale"]
        assert float(saved) == pytest.approx(math.log(scale), rel=1e-5)


@pytest.mark.parametrize(
    ("start", "most", "end"), [(9.0, 100.0, math.log(100)), (9.0, 30.0, math.log(30)), (-3.0, 100.0, 0.0)]
)
def test_a_learned_scale_stays_between_1_and_the_most(
    world: Any, tmp_path: Path, start: float, most: float, end: float
) -> None:
    run = Run(world.settings(tmp_path, max_scale=most))
    with torch.no_grad():
        run.model.logit_scale.fill_(start)
    values = run.step(run.loader.batch(0))
    assert float(run.model.logit_scale.detach()) == pytest.approx(end, abs=1e-6)
    assert float(values["logit_scale"]) == pytest.approx(math.exp(end), rel=1e-6)


def test_a_learned_scale_is_learned_and_not_decayed(world: Any, tmp_path: Path) -> None:
    run = Run(world.settings(tmp_path, optimiser={"weight_decay": 0.9, "lr": 1e-2, "warmup": 0}))
    before = float(run.model.logit_scale.detach())
    run.step(run.loader.batch(0))
    # Adam's first step is the learning rate itself, whatever the gradient.
    assert abs(float(run.model.logit_scale.detach()) - before) == pytest.approx(1e-2, rel=1e-3)


def test_targets_are_the_caches_rows_at_the_teachers_or_the_pinned_scale(world: Any, tmp_path: Path) -> None:
    cache = TeacherCache.open(world.cache, world.dataset)
    where = {
        key: (place, row) for place, shard in enumerate(world.dataset.shards) for row, key in enumerate(shard.keys)
    }
    for pinned, expected in ((None, 30.0), (64.0, 64.0)):
        run = Run(world.settings(tmp_path, teacher_scale=pinned))
        batch = run.loader.batch(2)
        (target,) = batch.targets.teachers["txt"]
        assert target.logit_scale == pytest.approx(expected, rel=1e-6)
        assert np.array_equal(target.text.numpy(), cache.text(np.array([where[key] for key in batch.keys])))
    plain = Run(world.settings(tmp_path, cache=()))
    assert plain.loader.batch(0).targets.teachers == {}


def test_each_teacher_may_have_its_own_scale(world: Any, rich: str, tmp_path: Path) -> None:
    """By its name; one that is not named keeps its own."""
    two = {"cache": rich, "teachers": ("teach", "other")}
    for chosen, expected in (({"other": 70.0}, (30.0, 70.0)), ({"teach": 40.0, "other": 70.0}, (40.0, 70.0))):
        run = Run(world.settings(tmp_path, **two, teacher_scale=chosen))
        said = run.loader.batch(0).targets.teachers["txt"]
        assert [one.logit_scale for one in said] == pytest.approx(expected, rel=1e-6)
        assert [facts["logit_scale"] for facts in run.facts()["teachers"]] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(UserError, match=r"--teacher-scale: third is none of the teachers\. Use teach or other"):
        Run(world.settings(tmp_path, **two, teacher_scale={"third": 70.0}))


def test_embeddings_are_the_students_of_normalised_pixels(world: Any, tmp_path: Path) -> None:
    run = Run(world.settings(tmp_path))
    batch = run.loader.batch(1)
    with torch.no_grad():
        got = run.student(batch.images, batch.tokens)
        mean, std = (np.array(run.config["preprocess_cfg"][name]) for name in ("mean", "std"))
        pixels = torch.from_numpy((batch.images.numpy() / 255 - mean) / std).permute(0, 3, 1, 2)
        model = run.model.double()
        assert (got["image"] - model.encode_image(pixels)).abs().max() < 1e-5
        assert (got["text/txt"] - model.encode_text(batch.tokens["txt"])).abs().max() < 1e-5


def test_the_loss_is_the_sum_over_terms_of_means_over_captions_and_teachers(
    world: Any, rich: str, tmp_path: Path
) -> None:
    """Several teachers count as their mean, caption sets too, terms have their weights; worked out here."""
    several = {"cache": rich, "teachers": ("teach", "other"), "captions": ("txt", "json-key")}
    run = Run(world.settings(tmp_path, **several, losses={"affinity": 0.5, "contrastive": 2.0}))
    batch = run.loader.batch(1)
    assert batch.captions["json-key"] == batch.keys != batch.captions["txt"]
    # Before the step: it changes the student.
    own = {captions: embedded(run, batch, captions) for captions in ("txt", "json-key")}
    values = {name: float(value) for name, value in run.step(batch).items()}
    total = 0.0
    for captions, student in own.items():
        terms = []
        for teacher, scale in zip(batch.targets.teachers[captions], (30.0, 20.0), strict=True):
            terms.append(affinity(student, teacher.image.double().numpy(), teacher.text.double().numpy(), scale))
        assert values[f"affinity/{captions}"] == pytest.approx(sum(terms) / 2, rel=1e-5)
        matches = affinity(student, np.eye(6), np.eye(6), 1e3 / 2)
        assert values[f"contrastive/{captions}"] == pytest.approx(matches, rel=1e-5)
        total += (0.5 * sum(terms) / 2 + 2.0 * matches) / 2
    assert values["loss"] == pytest.approx(total, rel=1e-5)
    assert {name for name in values if "/" in name} == {
        f"{loss}/{captions}" for loss in ("affinity", "contrastive") for captions in ("txt", "json-key")
    }


def test_plain_training_takes_several_captions_without_a_cache(world: Any, rich: str, tmp_path: Path) -> None:
    """The same texts, in the same turns, as a run from a cache that holds them: else the two could not be compared."""
    plain = world.settings(tmp_path, cache=(), captions=("txt", "json:key"))
    cached = world.settings(
        tmp_path, cache=rich, teachers=("teach",), captions=("txt", "json-key"), losses={"contrastive": 1.0}
    )
    values, texts = [], []
    for settings in (plain, cached):
        run = Run(settings)
        batch = run.loader.batch(1)
        texts.append(batch.captions)
        values.append({name: float(value) for name, value in run.step(batch).items()})
    assert texts[0] == texts[1]
    assert set(texts[0]) == {"txt", "json-key"}
    assert {"contrastive", "contrastive/txt", "contrastive/json-key"} <= set(values[0])
    # The crops are drawn, or those of the cache; the captions' part of the log has the same names.
    assert set(values[0]) == set(values[1])
    with pytest.raises(UserError, match=r"no captions can be read from this.*Write txt, json:FIELD"):
        world.settings(tmp_path, cache=(), captions=("json-key",))
    assert Run(plain).identity() != Run(world.settings(tmp_path, cache=())).identity()


def test_several_teachers_are_chosen_by_an_option_that_is_there(world: Any, rich: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several teachers: other, teach, texts.*Choose with --teacher NAME"):
        Run(world.settings(tmp_path, cache=rich))


def test_a_teacher_of_texts_cannot_say_what_images_are_like(world: Any, rich: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'affinity' needs image embeddings, and this teacher embedded captions only"):
        Run(world.settings(tmp_path, cache=rich, teachers=("texts",)))
    with pytest.raises(UserError, match="'sigmoid_affinity' needs a teacher with a logit bias"):
        Run(world.settings(tmp_path, losses={"sigmoid_affinity": 1.0}))


def test_a_weight_takes_its_course(world: Any, tmp_path: Path) -> None:
    """Straight lines between points of the run's length, level beyond; the loss of each step has that weight."""
    course = LossTerm(weight=((0.25, 0.0), (0.75, 4.0), (0.75, 1.0)))
    settings = world.settings(tmp_path / "run", steps=9, log_every=1, losses={"contrastive": 1.0, "affinity": course})
    train(settings)
    expected = [0, 0, 0, 1, 2, 3, 1, 1, 1]
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["weight/affinity"] for line in lines] == pytest.approx(expected, abs=1e-12)
    for line, weight in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(line["contrastive"] + weight * line["affinity"], rel=1e-6)
    assert "weight/contrastive" not in lines[0]


def test_the_gradient_is_cut_to_its_norm(world: Any, tmp_path: Path) -> None:
    """Seen in Adam's first moment, which after one step is (1 - beta1) times the gradient."""

    def moment(clip: float) -> tuple[float, float]:
        run = Run(world.settings(tmp_path, optimiser={"clip_norm": clip}))
        values = run.step(run.loader.batch(0))
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


def test_an_average_of_the_weights_is_what_is_delivered(world: Any, tmp_path: Path) -> None:
    """In numpy: it begins with the weights after the first step. What is trained is not the average."""
    settings = world.settings(tmp_path / "run", steps=5, optimiser={"ema": 0.6})
    result = train(settings)
    delivered = load_file(Path(result.model) / "open_clip_model.safetensors")
    run = Run(settings)
    average: dict[str, Any] = {}
    for batch in run.loader.batches(0, 5):
        run.step(batch)
        weights = {name: value.double().numpy() for name, value in run.model.state_dict().items()}
        average = {name: 0.6 * average[name] + 0.4 * weights[name] if average else weights[name] for name in weights}
    assert delivered.keys() == average.keys()
    for name, value in average.items():
        assert np.abs(delivered[name].numpy() - value).max() < 1e-6, name
    trained = load_file(tmp_path / "run" / "checkpoints" / "00000005" / "model.safetensors")
    assert max(float((trained[name] - value).abs().max()) for name, value in delivered.items()) > 1e-3
    assert all(np.abs(trained[name].numpy() - value).max() < 1e-6 for name, value in weights.items())


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
    assert resolved["identity"]["settings"]["losses"] == {"affinity": {"weight": 1.0, "options": {}}}
    facts = resolved["facts"]
    assert (facts["steps"], facts["steps_per_epoch"], facts["processes"]) == (6, 4, 1)
    model = Run(settings).model
    count = {tower: facts["student"]["parameters"][tower] for tower in ("image", "text")}
    assert count["image"] == sum(p.numel() for p in model.visual.parameters())
    # The scale is of neither, and papers count text towers without their token embedding.
    outside = 1 + model.token_embedding.weight.numel()
    assert sum(count.values()) == sum(p.numel() for p in model.parameters()) - outside


def test_log_lines_are_means_over_their_interval(world: Any, tmp_path: Path) -> None:
    each = world.settings(tmp_path / "each", log_every=1)
    fives = world.settings(tmp_path / "fives", log_every=5)
    train(each)
    train(fives)
    singles = read_log(tmp_path / "each" / "log.jsonl")
    means = read_log(tmp_path / "fives" / "log.jsonl")
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
        (target,) = run.loader.batch(step).targets.teachers["txt"]
        logits = target.logit_scale * target.image.double() @ target.text.double().T
        entropies = [-(way.softmax(1) * way.log_softmax(1)).sum(1).mean() for way in (logits, logits.T)]
        floors.append(float(sum(entropies)) / 2)
    train(settings)
    losses = [line["loss"] - float(np.mean(floors)) for line in read_log(tmp_path / "run" / "log.jsonl")]
    assert losses[-1] < losses[0] / 2
    assert losses[-1] > -0.05


def test_training_without_a_teacher_is_plain_clip(world: Any, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "plain", cache=(), views=3, log_every=1, steps=4)
    train(settings)
    (line, *_) = read_log(tmp_path / "plain" / "log.jsonl")
    assert set(line) == {"step", "loss", "contrastive", "grad_norm", "logit_scale", "lr", "measured"}
    # Untrained, and 6 captions to choose from.
    assert line["loss"] == pytest.approx(math.log(6), abs=1.0)
