"""Samples chosen from a super-batch by the student's loss less the teachers': the choice by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.training.ranks import Ranks
from distill.training.run import Run
from distill.training.super_batch import Deal, highest
from distill.training.train import train
from shards import UserError
from tests.distill.test_train import begin_again_after, outcome

Array = np.ndarray[Any, np.dtype[np.float64]]


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def own_losses(image: Array, text: Array, scale: float) -> Array:
    """Of each sample, the mean of both directions."""
    logits = scale * image @ text.T
    found = [np.log(np.exp(rows).sum(axis=1)) - rows.diagonal() for rows in (logits, logits.T)]
    return (found[0] + found[1]) / 2


def test_the_highest_are_the_highest_and_of_equal_ones_the_first() -> None:
    scores = torch.tensor([0.5, 2.0, -1.0, 0.5, 0.5, 3.0])
    assert highest(scores, 3).tolist() == [0, 1, 5]
    assert highest(scores, 4).tolist() == [0, 1, 3, 5]


def test_a_step_trains_on_the_samples_that_the_student_alone_gets_wrong(world: Any, rich: str, tmp_path: Path) -> None:
    """Two teachers, two caption sets; dropped patches are not dropped while it is chosen."""
    settings = world.settings(
        tmp_path,
        cache=rich,
        teachers=("teach", "other"),
        captions=("txt", "json-key"),
        super_batch=13,
        batch_size=5,
        losses={"contrastive": 1.0, "affinity": 0.5},
        student_scale=9.0,
        patch_mask=0.5,
    )
    run = Run(settings)
    assert run.order.steps_per_epoch == 2
    batch = run.loader.batch(1)
    assert len(batch.keys) == 13
    run.student.eval()
    with torch.no_grad():
        out = run.student(batch.images, batch.tokens)
    run.student.train()
    image = unit(out["image"].double().numpy())
    scores = np.zeros(13)
    for captions, said in batch.targets.teachers.items():
        text = unit(out[f"text/{captions}"].double().numpy())
        theirs = [
            own_losses(one.image.double().numpy(), one.text.double().numpy(), float(one.logit_scale)) for one in said
        ]
        scores += (own_losses(image, text, 9.0) - sum(theirs) / 2) / 2
    chosen = np.sort(np.argsort(-scores)[:5])

    # What is taken to be the batch, and that its loss is of these samples alone.
    seen: list[torch.Tensor] = []
    run.student.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    values = run._gradients(batch, run.weights(0), lambda total: total)
    assert torch.equal(seen[-1], batch.images[chosen])
    assert sum(map(len, seen[:-1])) == 13
    assert float(values["aced/gap"]) == pytest.approx(scores.mean(), rel=1e-4)
    assert float(values["aced/gap_chosen"]) == pytest.approx(scores[chosen].mean(), rel=1e-4)
    grads = {name: p.grad.clone() for name, p in run.student.named_parameters() if p.grad is not None}

    plain = Run(replace(settings, super_batch=None))
    part = replace(
        batch,
        images=batch.images[chosen],
        tokens={name: ids[chosen] for name, ids in batch.tokens.items()},
        targets=batch.targets.with_rows(lambda rows: rows[chosen]),
    )
    assert float(plain._gradients(part, plain.weights(0), lambda total: total)["loss"]) == float(values["loss"])
    for name, parameter in plain.student.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, grads[name]), name


def test_samples_are_dealt_out_evenly_whoever_holds_them() -> None:
    """Of processes that are played one after the other, with what each would send put in the others' place."""
    chosen, held = torch.tensor([0, 1, 2, 5, 10, 11]), 4
    rows = torch.arange(12).reshape(12, 1) * torch.ones(1, 2)

    class Played(Ranks):
        sent: list[torch.Tensor]

        def gather(self, part: torch.Tensor) -> torch.Tensor:
            self.sent.append(part)
            return torch.cat(whole) if whole else torch.cat([part] * self.size)

    whole: list[torch.Tensor] = []
    for _ in range(2):
        found, sent = [], []
        for rank in range(3):
            ranks = Played(rank, 3, torch.device("cpu"))
            object.__setattr__(ranks, "sent", [])
            found.append(Deal(ranks, chosen, held)(rows[rank * held : (rank + 1) * held]))
            sent += ranks.sent
        whole = sent
    assert torch.cat(found)[:, 0].tolist() == chosen.tolist()
    assert [len(part) for part in found] == [2, 2, 2]


def test_a_run_goes_on_to_the_same_bytes(world: Any, tmp_path: Path) -> None:
    settings = world.settings(tmp_path / "run", super_batch=12, steps=4, keep=4, patch_mask=0.5, micro_batches=2)
    train(settings)
    expected = outcome(tmp_path / "run")
    begin_again_after(tmp_path / "run", 2)
    train(settings)
    assert outcome(tmp_path / "run") == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"super_batch": 6}, "--super-batch: a super-batch of 6 leaves no choice for a batch of 6"),
        ({"super_batch": 12, "cache": ()}, "--super-batch: .*no teacher"),
        ({"super_batch": 12, "join": "none"}, "--super-batch, --join none"),
    ],
)
def test_what_cannot_be_chosen_from_is_said(world: Any, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        world.settings(tmp_path, **changes)


def test_a_super_batch_has_to_be_filled_and_to_be_judged(world: Any, rich: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"26 samples do not fill one batch of 27\. Use a smaller --super-batch"):
        Run(world.settings(tmp_path, super_batch=27))
    texts = {"cache": rich, "teachers": ("texts",), "text_tower": "cache"}
    with pytest.raises(UserError, match="choosing from a super-batch needs image embeddings"):
        Run(world.settings(tmp_path, **texts, super_batch=12))
    with pytest.raises(UserError, match="a super-batch of 13 cannot be cut evenly for 2 processes"):
        world.settings(tmp_path, super_batch=13).check_batch(26, 2)
