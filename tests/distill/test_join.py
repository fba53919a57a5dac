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
    (teacher,) = batch.targets.teachers["txt"]
    assert teacher.image.shape == teacher.text.shape == (len(batch.keys), 40)
    for row in rows:
        position = keys.index(batch.keys[row])
        shard = int(np.searchsorted(counts, position, side="right")) - 1
        place = np.array([(shard, position - counts[shard])])
        assert np.array_equal(teacher.text[row].numpy(), whole.text(place)[0])
        views = [whole.image(place, np.array([view]))[0] for view in (0, 1)]
        assert any(np.array_equal(teacher.image[row].numpy(), view) for view in views)


def test_a_run_without_a_join_is_refused(part: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 3 shards are not in the cache \(first: 00001\)"):
        Run(part.settings(tmp_path))


def test_skipping_trains_on_the_samples_that_have_a_teacher(part: Any, tmp_path: Path) -> None:
    run = Run(part.settings(tmp_path, join="skip"))
    assert (run.order.samples, run.order.steps_per_epoch) == (13, 3)
    seen = []
    for step in range(3):
        batch = run.loader.batch(step)
        assert batch.targets.present is None
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


def test_without_a_teacher_all_samples_are_seen_and_it_is_known_which_have_one(part: Any, tmp_path: Path) -> None:
    run = Run(part.settings(tmp_path, join="none"))
    whole = Run(part.settings(tmp_path, cache=part.whole))
    assert run.order.samples == 16
    seen = []
    for step in range(4):
        batch, full = run.loader.batch(step), whole.loader.batch(step)
        # What the student sees is the same, crops of those without a teacher too.
        assert batch.keys == full.keys
        assert torch.equal(batch.images, full.images)
        present = [at for at, key in enumerate(batch.keys) if number(key) not in MISSING]
        assert batch.targets.present is not None
        assert batch.targets.present.nonzero()[:, 0].tolist() == present
        (ours,), (theirs,) = batch.targets.teachers["txt"], full.targets.teachers["txt"]
        assert torch.equal(ours.image[present], theirs.image[present])
        check_targets(part, batch, present)
        seen += batch.keys
    assert {number(key) for key in seen} == set(range(16))


def test_losses_meet_the_right_rows(part: Any, tmp_path: Path) -> None:
    """The affinity of the rows with a teacher alone beside the contrastive loss of all, worked out here."""
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
        present = [at for at, key in enumerate(batch.keys) if number(key) not in MISSING]
        mixed += len(present) < 8
        (teacher,) = batch.targets.teachers["txt"]
        says = 30 * teacher.image[present].double() @ teacher.text[present].double().T
        logits = scale * image[present] @ text[present].T
        expected = (F.cross_entropy(logits, says.softmax(dim=1)) + F.cross_entropy(logits.T, says.T.softmax(dim=1))) / 2
        assert float(terms["affinity"]) == pytest.approx(float(expected), rel=1e-4)
    assert mixed, "all samples of every batch had a teacher"


def test_a_batch_of_which_no_teacher_knows_a_sample_is_trained_on(part: Any, tmp_path: Path) -> None:
    settings = part.settings(tmp_path / "run", join="none", batch_size=1, steps=16, losses={"contrastive": 1, "fd": 1})
    run = Run(settings)
    batches = [run.loader.batch(step) for step in range(16)]
    empty = [batch for batch in batches if batch.targets.present is not None and not batch.targets.present.any()]
    assert len(empty) == 3
    for batch in empty:
        check_targets(part, batch, [])
        terms = run.step(batch)
        assert float(terms["fd"]) == 0
        assert all(torch.isfinite(value) for value in terms.values())
    assert math.isfinite(train(settings).loss)


def test_joins_without_a_cache_are_refused(part: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="something here joins shards with a cache, and there is no cache"):
        part.settings(tmp_path, cache=(), join="skip")


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
