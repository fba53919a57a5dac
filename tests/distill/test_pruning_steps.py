"""Masks under whatever else a step can have: pieces, recomputed activations, an average, a locked tower, autocast."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.pruning import PruneSettings, pruning_report
from distill.pruning.masks import masked_towers
from distill.settings import RunSettings
from distill.training.ranks import Ranks
from distill.training.run import Run
from tests.distill.pruning_formulas import probability
from tests.distill.ranks_program import doubled, gradients, in_float64, pruned, prunings, scatter

ALONE = Ranks(0, 1, torch.device("cpu"))
PRUNE = PruneSettings(target=0.6, ramp=4, lr=1.0)
PLAIN: dict[str, Any] = {"teachers": ("teach",), "captions": ("txt",)}
FAR = PruneSettings(target=0.95, ramp=0, lr=0.7)


@pytest.fixture
def settings(world: Any, rich: str, tmp_path: Path, save_student: Callable[..., str]) -> Callable[..., RunSettings]:
    """`settings(**changes)`: a pruning run of a student of two layers, two caption sets and two teachers."""
    student = save_student(tmp_path / "student.json", layers=2)

    def make(**changes: Any) -> RunSettings:
        several = {"cache": rich, "teachers": ("teach", "other"), "captions": ("txt", "json-key")}
        chosen = {**several, "student": student, "prune": PRUNE, "losses": {"affinity": 1.0, "fd": 9.0}, **changes}
        made: RunSettings = world.settings(tmp_path / "run", **chosen)
        return made

    return make


def steps(run: Run, count: int) -> None:
    for step in range(count):
        run.step(doubled(run.loader.batch(step)))


@torch.no_grad()
def embeddings(model: Any, run: Run) -> list[Tensor]:
    """Of a batch, in evaluation and in the model's dtype."""
    batch = run.loader.batch(0)
    pixels = (batch.images.permute(0, 3, 1, 2) / 255).to(model.logit_scale.dtype)
    return [model.eval().encode_image(pixels), model.encode_text(batch.tokens["txt"])]


def difference(ours: list[Tensor], others: list[Tensor]) -> float:
    return max(float((here - there).abs().max()) for here, there in zip(ours, others, strict=True))


@pytest.mark.parametrize(
    "how",
    [
        {"micro_batches": 3},
        {"micro_batches": 6},
        {"checkpoint_activations": True},
        {"checkpoint_activations": True, "micro_batches": 2},
    ],
    ids=str,
)
def test_the_gradients_are_those_of_the_whole(settings: Callable[..., RunSettings], how: dict[str, Any]) -> None:
    """In float64: of the weights, of every mask and of the multipliers, for the gates of two steps."""
    whole, _ = gradients(settings(prune=FAR), ALONE, [1, 2])
    found, _ = gradients(settings(prune=FAR, **how), ALONE, [1, 2])
    assert found.keys() == whole.keys()
    for name, gradient in whole.items():
        assert (found[name] - gradient).abs().max() <= 1e-12 * max(1e-3, float(gradient.abs().max())), name
    assert (whole["1/prune.multipliers"] > 0.01).all()
    for home in ("visual.", ""):
        rows = [whole[f"{step}/model.{home}transformer.gates.hidden"] for step in (1, 2)]
        # The penalty's alone would be the same in both.
        assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_pieces_prune_to_the_same_model(settings: Callable[..., RunSettings]) -> None:
    """In float64, after eight steps: the masked weights, the multipliers and what is materialised."""
    whole = pruned(settings(**PLAIN), ALONE)
    cut = pruned(settings(**PLAIN, micro_batches=3), ALONE)
    assert cut.keys() == whole.keys()
    for name, value in whole.items():
        assert cut[name].shape == value.shape, name
        assert (cut[name] - value).abs().max() < 1e-9, name
    masked, dense = (whole[f"{part}/visual.conv1.weight"] for part in ("masked", "dense"))
    assert 8 < len(dense) < len(masked)


def test_the_average_is_delivered_under_the_masks_as_they_are(settings: Callable[..., RunSettings]) -> None:
    """Averaged here in numpy; the masks are those of the last step, and so is what they leave."""
    run = in_float64(settings(optimiser={"ema": 0.6}), ALONE)
    average: dict[str, Any] = {}
    for step in range(8):
        run.step(doubled(run.loader.batch(step)))
        now = {name: value.detach().numpy().copy() for name, value in run.model.named_parameters()}
        average = {name: 0.6 * average[name] + 0.4 * now[name] if average else now[name] for name in now}
    lag = 0.0
    for name, value in run.delivered.named_parameters():
        expected = now[name] if ".gates." in name else average[name]
        assert np.abs(value.detach().numpy() - expected).max() < 1e-12, name
        lag = max(lag, float(np.abs(average[name] - now[name]).max())) if ".gates." in name else lag
    assert lag > 0.5
    dense, config = run.finished()
    assert difference(embeddings(dense, run), embeddings(run.delivered, run)) < 1e-12
    assert difference(embeddings(dense, run), embeddings(run.model, run)) > 1e-3
    for kind in ("vision", "text"):
        towers = [{t.kind: t.gates for t in masked_towers(model)}[kind] for model in (run.model, run.delivered)]
        assert towers[0].chosen().shape(towers[0].shape) == towers[1].chosen().shape(towers[1].shape)
        assert config["model_cfg"][f"{kind}_cfg"]["width"] < towers[0].shape.width


@pytest.mark.parametrize(("locked", "other"), [("image", "text"), ("text", "vision")])
def test_a_locked_tower_is_neither_masked_nor_counted(
    settings: Callable[..., RunSettings], locked: Any, other: str
) -> None:
    run = in_float64(settings(lock=(locked,)), ALONE)
    before = embeddings(run.model, run)
    run.student.train()
    (pruning,) = prunings(run)
    (gates,) = pruning.gates
    assert [tower.kind for tower in masked_towers(run.model)] == [other]
    steps(run, 8)
    figures = pruning.figures(8)
    d, heads = gates.shape.full.width, gates.shape.full.heads
    hidden, of_heads, mlp = (probability(row.detach().numpy()).sum() for row in gates.parameters())
    expected = hidden * (of_heads * ((4 * d * d + 4 * d) // heads) / d + 2 * mlp)
    full = 2 * (4 * d * d + 4 * d + 2 * d * 4 * d + d + 4 * d)
    assert float(figures["prune/sparsity"]) == pytest.approx(1 - expected / full, rel=1e-12)
    assert float(figures["prune/sparsity"]) > 0.3
    dense, config = run.finished()
    assert list(config["model_cfg"]["clipstill_pruned"]) == [other]
    after = embeddings(dense, run)
    at = ("image", "text").index(locked)
    assert difference([after[at]], [before[at]]) < 1e-12
    assert difference([after[1 - at]], [before[1 - at]]) > 1e-3
    report = pruning_report(run.delivered, PRUNE)
    home = dense.visual if other == "vision" else dense.transformer
    counted = sum(p.numel() for name, p in home.named_parameters() if ".attn." in name or ".mlp." in name)
    assert report["parameters"]["kept"] == counted < report["parameters"]["full"] == full


@pytest.mark.parametrize(("precision", "closeness"), [("bf16", 0.03), ("fp16", 0.004)])
def test_autocast_computes_the_masked_model_closely(
    settings: Callable[..., RunSettings], precision: Any, closeness: float
) -> None:
    """Masks, gates and multipliers stay in float32, and the penalty's gradient is not scaled with the loss's."""
    plain, low = Run(settings(prune=FAR)), Run(settings(prune=FAR, precision=precision))
    found = []
    for run in (plain, low):
        (pruning,) = prunings(run)
        scatter(run)
        if run.scaler.is_enabled():
            # Torch begins where the first step overflows, and is left out.
            run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        batch = run.loader.batch(2)
        pruning.begin(2)
        for training in (True, False):
            run.student.train(training)
            with torch.no_grad():
                out = run.student(batch.images, batch.tokens)
            found.append([out["image"], out["text/txt"]])
        run.student.train()
        run.step(batch)
        for gates in pruning.gates:
            opened = gates.opened
            rows = [*gates.parameters(), opened.hidden, *opened.heads, *opened.mlp]
            assert {row.dtype for row in rows} == {torch.float32}
    for ours, theirs in ((found[2], found[0]), (found[3], found[1])):
        assert 0 < difference(ours, theirs) < closeness
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    narrow = (30 + torch.randn(4, 32, generator=torch.Generator().manual_seed(0))).to(dtype)
    with torch.no_grad():
        # The norms compute in float32 and round once.
        assert torch.equal(low.model.visual.ln_post(narrow), low.model.visual.ln_post(narrow.float()).to(dtype))
    moments = [run.optimiser.state[each.multipliers]["exp_avg"] for run in (plain, low) for each in prunings(run)]
    assert (moments[0].abs() > 1e-3).all()
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-4, atol=0)


def compiled_steps(settings: RunSettings, backend: str | None) -> dict[str, Tensor]:
    """The masks after three steps, of a run with `backend` for its student, each step's graph being the first's."""
    run = Run(replace(settings, compile=backend is not None))
    scatter(run)
    if backend:
        # In place of the backend that the run chose.
        run.student.compile(backend=backend, fullgraph=True)
    for step in range(3):
        with torch._dynamo.config.patch(error_on_recompile=True):
            run.step(run.loader.batch(step))
    return {name: value.detach() for name, value in run.model.named_parameters() if ".gates." in name}


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        # One or two minutes of compiling.
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(shutil.which("g++") is None, reason="it needs a C++ compiler, and there is no g++"),
            ],
        ),
    ],
)
def test_a_compiled_masked_student_takes_the_same_steps(settings: Callable[..., RunSettings], backend: str) -> None:
    """Each with the gates of its own draw, from one graph."""
    torch._dynamo.reset()
    plain, fast = (compiled_steps(settings(**PLAIN), chosen) for chosen in (None, backend))
    assert sum(len(row) for row in plain.values()) > 100
    for name, row in plain.items():
        torch.testing.assert_close(fast[name], row, rtol=1e-4, atol=1e-4)
