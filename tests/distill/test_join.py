"""A run whose cache lacks some of the samples: refused, trained without them, or trained without their teacher."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.data.loader import Batch
from distill.training.run import Run
from distill.training.train import train
from shards import UserError
from teacher_cache import TeacherCache

MISSING = set(range(9, 12))
"""The second shard is not in the cache."""


def number(key: str) -> int:
    return int(key[-9:])


def check_targets(part: Any, batch: Batch, rows: list[int]) -> None:
    """The teacher's rows of a batch are those of the samples `rows` of it, in a cache that has them all."""
    whole = TeacherCache.open(part.whole, part.dataset)
    keys = [key for shard in part.dataset.shards for key in shard.keys]
    counts = np.cumsum([0, 9, 3, 4])
    (teacher,) = batch.teachers
    assert teacher.image is not None
    assert teacher.image.shape == teacher.text["txt"].shape == (len(rows), 40)
    for at, row in enumerate(rows):
        position = keys.index(batch.keys[row])
        shard = int(np.searchsorted(counts, position, side="right")) - 1
        place = np.array([(shard, position - counts[shard])])
        assert np.array_equal(teacher.text["txt"][at].numpy(), whole.text(place)[0])
        views = [whole.image(place, np.array([view]))[0] for view in (0, 1)]
        assert any(np.array_equal(teacher.image[at].numpy(), view) for view in views)


def test_a_run_without_a_join_is_refused(part: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 3 shards are not in the cache \(first: 00001\)"):
        Run(part.settings(tmp_path))


def test_skipping_trains_on_the_samples_that_have_a_teacher(part: Any, tmp_path: Path) -> None:
    run = Run(part.settings(tmp_path, join="skip"))
    assert (run.order.samples, run.order.steps_per_epoch) == (13, 3)
    seen = []
    for step in range(3):
        batch = run.loader.batch(step)
        assert batch.taught is None
        check_targets(part, batch, [0, 1, 2, 3])
        seen += [number(key) for key in batch.keys]
    assert len(set(seen)) == 12
    assert not MISSING & set(seen)
    result = train(part.settings(tmp_path, join="skip"))
    assert result.steps == 4
    assert math.isfinite(result.loss)


def test_the_limit_of_what_is_skipped_holds(part: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 of 16 samples have no embeddings \(18\.75%\), the limit is 10\.00%"):
        Run(part.settings(tmp_path, join="skip", join_limit=0.1))


def test_too_few_samples_left_for_a_batch_are_refused(part: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="13 samples do not fill one batch of 14"):
        Run(part.settings(tmp_path, join="skip", batch_size=14))


def test_without_a_teacher_all_samples_are_seen_and_taught_names_the_others(part: Any, tmp_path: Path) -> None:
    run = Run(part.settings(tmp_path, join="none"))
    whole = Run(part.settings(tmp_path, cache=part.whole))
    assert run.order.samples == 16
    seen = []
    for step in range(4):
        batch, full = run.loader.batch(step), whole.loader.batch(step)
        # What the student sees is the same, crops of the untaught too.
        assert batch.keys == full.keys
        assert torch.equal(batch.images, full.images)
        taught = [at for at, key in enumerate(batch.keys) if number(key) not in MISSING]
        assert (batch.taught is None) == (len(taught) == 4)
        assert batch.taught is None or batch.taught.tolist() == taught
        image, all_images = batch.teachers[0].image, full.teachers[0].image
        assert image is not None
        assert all_images is not None
        assert torch.equal(image, all_images[taught])
        check_targets(part, batch, taught)
        seen += batch.keys
    assert {number(key) for key in seen} == set(range(16))


def test_losses_meet_the_right_rows(part: Any, tmp_path: Path) -> None:
    """The affinity of the taught rows alone beside the contrastive loss of all, worked out here."""
    settings = part.settings(tmp_path, join="none", losses={"affinity": 1.0, "contrastive": 1.0}, batch_size=8)
    run = Run(settings)
    mixed = 0
    for step in range(2):
        batch = run.loader.batch(step)
        with torch.no_grad():
            student = run.student(batch.images, batch.tokens)
        image, text = (F.normalize(student[name].double(), dim=-1) for name in ("image", "text/txt"))
        scale = float(student["logit_scale"])
        terms = run.step(batch)
        logits = scale * image @ text.T
        own = torch.arange(8)
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        assert float(terms["contrastive"]) == pytest.approx(float(expected), rel=1e-4)
        taught = [at for at, key in enumerate(batch.keys) if number(key) not in MISSING]
        mixed += len(taught) < 8
        (teacher,) = batch.teachers
        assert teacher.image is not None
        says = 30 * teacher.image.double() @ teacher.text["txt"].double().T
        logits = scale * image[taught] @ text[taught].T
        expected = (F.cross_entropy(logits, says.softmax(dim=1)) + F.cross_entropy(logits.T, says.T.softmax(dim=1))) / 2
        assert float(terms["affinity"]) == pytest.approx(float(expected), rel=1e-4)
    assert mixed, "no batch had untaught samples"


def test_a_batch_without_one_taught_sample_is_trained_on(part: Any, tmp_path: Path) -> None:
    settings = part.settings(tmp_path / "run", join="none", batch_size=1, steps=16, losses={"contrastive": 1, "fd": 1})
    run = Run(settings)
    batches = [run.loader.batch(step) for step in range(16)]
    empty = [batch for batch in batches if batch.taught is not None]
    assert len(empty) == 3
    for batch in empty:
        assert batch.taught is not None
        assert len(batch.taught) == 0
        check_targets(part, batch, [])
        terms = run.step(batch)
        assert float(terms["fd"]) == 0
        assert all(torch.isfinite(value) for value in terms.values())
    assert math.isfinite(train(settings).loss)


def test_joins_without_a_cache_are_refused(part: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something here joins shards with a cache, and there is no cache"):
        part.settings(tmp_path, cache=None, join="skip")


def test_samples_that_one_of_two_teachers_lacks_are_skipped(part: Any, tmp_path: Path) -> None:
    """Only what every teacher knows is trained on."""
    both = shutil.copytree(part.cache, tmp_path / "both")
    shutil.copytree(Path(part.whole) / "teach", both / "second")
    for record in (both / "second").rglob("_records/00002.*"):
        record.unlink()
    run = Run(part.settings(tmp_path, cache=str(both), teachers=("teach", "second"), join="skip", join_limit=0.5))
    assert run.order.samples == 9
    assert {number(key) for step in range(2) for key in run.loader.batch(step).keys} <= set(range(9))


def test_texts_that_stand_for_a_tower_must_all_be_there(part: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no text embeddings, and there is no text tower.*--join skip"):
        Run(part.settings(tmp_path, join="none", text_tower="cache"))
