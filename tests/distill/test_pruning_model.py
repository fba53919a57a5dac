"""Models under masks: what they compute, what is left of them, and that it is an ordinary model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clip_models import ModelConfig, create_student, load_model, save_model
from clip_models.pruned import tower_shape
from distill.pruning import PruneSettings, Pruning, draw_architecture, pruning_report
from distill.pruning.gates import Gates, Opened
from distill.pruning.masks import mask, masked_towers
from distill.pruning.materialise import materialise
from shards import UserError
from tests.distill import pruning_formulas as formulas

HEAD = 8
WIDTHS = {"vision": 32, "text": 24}
CFG: dict[str, Any] = {
    "embed_dim": 20,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 3, "width": 32, "patch_size": 8, "head_width": HEAD},
    "text_cfg": {"context_length": 10, "vocab_size": 50, "width": 24, "heads": 3, "layers": 3},
}

Make = Callable[..., tuple[Any, ModelConfig]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A model in float64 of `CFG` with changes, none of whose tensors is 0 or 1, and its config."""

    def make(seed: int = 0, **changes: Any) -> tuple[Any, ModelConfig]:
        path = tmp_path / "cfg.json"
        path.write_text(json.dumps({**CFG, **changes}))
        model, config = create_student(str(path), seed)
        generator = torch.Generator().manual_seed(seed)
        model.double()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return model, config

    return make


def inputs() -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(5)
    return torch.tensor(random.normal(size=(3, 3, 16, 16))), torch.tensor(random.integers(1, 50, (3, 10)))


@pytest.mark.parametrize("training", [True, False])
def test_what_masks_bring_follows_the_model_it_stands_in(make: Make, training: bool) -> None:
    """Its mode, and its dtype: gates would else draw in evaluation, and multipliers round in float64."""
    model, config = make()
    model.train(training)
    pruning = Pruning(model, config, PruneSettings(target=0.5), 0)
    assert {module.training for module in model.modules()} == {training}
    assert pruning.multipliers.dtype == torch.float64
    scatter(model)
    found = []
    for step in (1, 2):
        pruning.begin(step)
        found.append(embeddings(model)[0])
    assert torch.equal(*found) is not training


@torch.no_grad()
def embeddings(model: Any) -> tuple[Tensor, Tensor]:
    pixels, ids = inputs()
    return model.encode_image(pixels), model.encode_text(ids)


def scatter(model: Any) -> None:
    """Masks of every kind: soft ones, closed ones, an attention without heads, an MLP without units."""
    generator = torch.Generator().manual_seed(3)
    for tower in masked_towers(model):
        gates = tower.gates
        heads, units = gates.shape.layers[1].heads, gates.shape.layers[2].mlp
        with torch.no_grad():
            for row in gates.parameters():
                row.copy_(2 * torch.randn(row.shape, generator=generator))
            gates.heads[heads : 2 * heads] = -12
            gates.mlp[-units:] = -12


def difference(ours: tuple[Tensor, ...], others: tuple[Any, ...]) -> float:
    return max(float((here - there).abs().max()) for here, there in zip(ours, others, strict=True))


def in_numpy(model: Any, opened: dict[str, Opened]) -> tuple[Tensor, Tensor]:
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    pixels, ids = (part.numpy() for part in inputs())
    image, text = (
        formulas.Open(
            opened[kind].hidden.detach().numpy(),
            [row.detach().numpy() for row in opened[kind].heads],
            [row.detach().numpy() for row in opened[kind].mlp],
        )
        for kind in ("vision", "text")
    )
    return (
        torch.tensor(formulas.image_tower(tensors, pixels, image, HEAD)),
        torch.tensor(formulas.text_tower(tensors, ids, text, HEAD)),
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_masked_model_computes_the_published_forward(make: Make, training: bool) -> None:
    model, config = make()
    mask(model, config)
    scatter(model)
    model.train(training)
    found = embeddings(model)
    opened = {tower.kind: tower.gates.opened for tower in masked_towers(model)}
    for tower in masked_towers(model):
        rows = [opened[tower.kind].hidden, torch.cat(opened[tower.kind].heads), torch.cat(opened[tower.kind].mlp)]
        pairs = zip(tower.gates.parameters(), tower.gates.uniform, strict=True)
        if training:
            gates = [formulas.training_gate(row.detach().numpy(), u.double().numpy()) for row, u in pairs]
            assert difference(tuple(rows), tuple(torch.tensor(gate) for gate in gates)) < 1e-12
        assert all((row == 0).any() and ((row > 0) & (row < 1)).any() for row in rows)
    assert difference(found, in_numpy(model, opened)) < 1e-12


def test_masks_that_are_all_open_change_nothing(make: Make) -> None:
    model, config = make()
    before = embeddings(model.eval())
    names = set(model.state_dict())
    mask(model, config)
    with torch.no_grad():
        for row in (row for tower in masked_towers(model) for row in tower.gates.parameters()):
            row.fill_(60)
    assert difference(embeddings(model.eval()), before) < 1e-12
    assert difference(embeddings(model.train()), before) < 1e-12
    assert names < set(model.state_dict())


VARIANTS: dict[str, dict[str, Any]] = {
    "CLIP": {},
    "averaged, without the first norm": {
        "vision_cfg": {**CFG["vision_cfg"], "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    },
    "a text tower of its own": {"custom_text": True, "text_cfg": {**CFG["text_cfg"], "proj_bias": True}},
    "other MLPs and both ways": {
        "vision_cfg": {**CFG["vision_cfg"], "mlp_ratio": 2.5},
        "text_cfg": {**CFG["text_cfg"], "no_causal_mask": True, "pool_type": "last"},
    },
    "with a bias": {"init_logit_bias": -10.0, "quick_gelu": False},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_materialised_model_is_the_masked_one(make: Make, changes: dict[str, Any]) -> None:
    model, config = make(**changes)
    mask(model, config)
    scatter(model)
    before, rng = copy.deepcopy(config), torch.get_rng_state()
    dense, new = materialise(model.eval(), config)
    assert difference(embeddings(dense), embeddings(model)) < 1e-12
    assert config == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert not dense.training
    for kind, layers in (("vision", dense.visual.transformer), ("text", getattr(dense, "text", dense).transformer)):
        shape = tower_shape(new["model_cfg"], kind)
        assert shape is not None
        assert shape.width < WIDTHS[kind]
        assert shape.layers[1].heads == 0
        assert shape.layers[2].mlp == 0
        counted = sum(p.numel() for name, p in layers.named_parameters() if ".attn." in name or ".mlp." in name)
        assert shape.prunable == counted
    assert len(dense.state_dict()) < len(model.state_dict())


def test_a_pruned_model_is_saved_loaded_and_pruned_again(make: Make, tmp_path: Path) -> None:
    model, config = make()
    mask(model, config)
    scatter(model)
    dense, config = materialise(model, config)
    dense.float()
    save_model(dense, config, str(tmp_path / "first"))
    loaded = load_model(str(tmp_path / "first"))
    assert loaded.config == config
    assert difference(embeddings(loaded.model.double()), embeddings(dense.double())) == 0

    student, config = create_student(str(tmp_path / "first"), seed=0)
    student.load_state_dict(loaded.model.state_dict())
    student.double()
    pruning = Pruning(student, config, PruneSettings(target=0.7), seed=1)
    assert {row.numel() for row in pruning.masks()} == {row for gates in pruning.gates for row in sizes(gates)}
    full = sum(formulas.prunable(width, 3) for width in WIDTHS.values())
    kept = sum(gates.shape.prunable for gates in pruning.gates)
    # What the formula leaves out: biases of output maps, and of the MLPs' units.
    assert float(pruning.figures(0)["prune/sparsity"]) == pytest.approx(1 - kept / full, abs=0.03)
    scatter(student)
    again, smaller = materialise(student.eval(), config)
    assert difference(embeddings(again), embeddings(student)) < 1e-12
    first, second = (tower_shape(c["model_cfg"], "vision") for c in (config, smaller))
    assert first is not None
    assert second is not None
    assert second.full == first.full
    assert second.prunable < first.prunable


def sizes(gates: Gates) -> list[int]:
    layers = gates.shape.layers
    return [gates.shape.width, sum(layer.heads for layer in layers), sum(layer.mlp for layer in layers)]


def test_the_next_stage_is_the_full_model_with_closed_masks(make: Make) -> None:
    """TinyCLIP's: kept units begin at log α = 10, those removed, whose weights are 0 there, at -10."""
    model, config = make()
    mask(model, config)
    scatter(model)
    chosen = {tower.kind: tower.gates.chosen() for tower in masked_towers(model)}
    dense, smaller = materialise(model, config)
    next_stage = Pruning(dense, smaller, PruneSettings(target=0.7), seed=0)
    ours = embeddings(dense.eval())

    with torch.no_grad():
        for tower in masked_towers(model):
            opened = chosen[tower.kind]
            # The kept weights have the gates of the stage before folded in.
            for block in tower_blocks(model, tower.kind):
                (attention, attention_bias), (mlp, mlp_bias) = block.folded(opened)
                block.attn.out_proj.weight.copy_(attention)
                block.attn.out_proj.bias.copy_(attention_bias)
                block.mlp.c_proj.weight.copy_(mlp)
                block.mlp.c_proj.bias.copy_(mlp_bias)
            rows = (opened.hidden, torch.cat(opened.heads), torch.cat(opened.mlp))
            for row, gate in zip(tower.gates.parameters(), rows, strict=True):
                row.copy_(torch.where(gate > 0, 10.0, -10.0))
        gated = {tower.kind: chosen[tower.kind].hidden for tower in masked_towers(model)}
        for tensor in (model.visual.class_embedding, model.visual.positional_embedding):
            tensor.mul_(gated["vision"])
        model.visual.conv1.weight *= gated["vision"][:, None, None, None]
        for tensor in (model.token_embedding.weight, model.positional_embedding):
            tensor.mul_(gated["text"])
    theirs = embeddings(model.eval())
    assert difference(theirs, ours) < 1e-12
    expected = [float(gates.expected().detach()) for gates in next_stage.gates]
    full = [float(tower.gates.expected().detach()) for tower in masked_towers(model)]
    # P(open) of log α = -10 is 2e-4, not 0: the only thing in which the two begin differently.
    assert full == pytest.approx(expected, rel=1e-3)
    assert all(theirs > ours for theirs, ours in zip(full, expected, strict=True))


def tower_blocks(model: Any, kind: str) -> Any:
    return (model.visual if kind == "vision" else model).transformer.resblocks


def test_training_drives_a_model_to_its_target(make: Make) -> None:
    model, config = make()
    model.float()
    settings = PruneSettings(target=0.5, ramp=40, lr=0.1)
    pruning = Pruning(model, config, settings, seed=4)
    groups = pruning.groups()
    own = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    optimiser = torch.optim.AdamW([{"params": rest}, *groups], lr=1e-3, fused=True)
    pixels, ids = inputs()
    with torch.no_grad():
        pruning.begin(0)
        wanted = model.encode_image(pixels.float())
    for step in range(70):
        pruning.begin(step)
        loss = (model.encode_image(pixels.float()) - wanted).square().mean() + 0 * model.encode_text(ids).mean()
        loss.backward()
        pruning.add_gradients(step, lambda penalty: penalty)
        optimiser.step()
        optimiser.zero_grad()
        pruning.after_step()
    figures = {name: float(value) for name, value in pruning.figures(70).items()}
    assert figures["prune/target"] == 0.5
    # Nothing draws masks back that have gone too far, which fast ones do.
    assert 0.5 <= figures["prune/sparsity"] < 0.75
    assert figures["prune/lambda1"] > 10
    assert all(row.abs().max() <= np.log(100) for row in pruning.masks())
    report = pruning_report(model, settings)
    dense, new = materialise(model, config)
    shapes = {kind: tower_shape(new["model_cfg"], kind) for kind in ("vision", "text")}
    assert report["sparsity"] == pytest.approx(report["expected"], abs=0.05)
    assert report["parameters"]["kept"] == sum(shape.prunable for shape in shapes.values() if shape)
    assert [part["width"] for part in report["towers"].values()] == [s.width for s in shapes.values() if s]
    assert dense.visual.conv1.weight.dtype == torch.float32


def test_gates_are_those_of_the_step(make: Make) -> None:
    model, config = make()
    pruning = Pruning(model, config, PruneSettings(target=0.5), seed=4)
    scatter(model)

    def at(step: int) -> tuple[Tensor, Tensor]:
        pruning.begin(step)
        return embeddings(model)

    first, other = at(7), at(8)
    assert difference(first, other) > 1e-3
    assert difference(first, at(7)) == 0
    # Of one step all forwards have the same gates, and an average of the weights can be begun after them.
    assert difference(embeddings(model), embeddings(copy.deepcopy(model))) == 0
    model.encode_image(inputs()[0])
    assert difference(embeddings(copy.deepcopy(model).eval()), embeddings(model.eval())) == 0


def test_an_average_of_the_weights_has_the_masks_as_they_are(make: Make) -> None:
    model, config = make()
    pruning = Pruning(model, config, PruneSettings(target=0.5), seed=4)
    average = copy.deepcopy(model)
    with torch.no_grad():
        average.visual.conv1.weight.mul_(2)
    scatter(model)
    pruning.after_step(average)
    dense, new = materialise(average, config)
    assert new == materialise(model, config)[1]
    assert difference(embeddings(dense), embeddings(average.eval())) < 1e-12
    assert difference(embeddings(dense), embeddings(model.eval())) > 1e-3


def test_recomputed_activations_give_the_same_gradients(make: Make) -> None:
    model, config = make()
    mask(model, config)
    scatter(model)
    grads = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        sum(
            part.square().sum() for part in (model.encode_image(inputs()[0]), model.encode_text(inputs()[1]))
        ).backward()
        grads.append({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.ndim})
    assert any("gates" in name and grad.any() for name, grad in grads[0].items())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-10, atol=1e-12)


def test_towers_that_are_not_trained_stay_whole(make: Make) -> None:
    model, config = make()
    before = embeddings(model.eval())[1]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))
    mask(model, config)
    scatter(model)
    dense, new = materialise(model, config)
    assert difference((embeddings(dense)[1],), (before,)) < 1e-12
    assert new["model_cfg"]["vision_cfg"]["width"] < 32
    assert list(new["model_cfg"]["clipstill_pruned"]) == ["vision"]


def test_what_is_frozen_within_a_tower_stays_frozen(make: Make) -> None:
    model, config = make()
    frozen = {name for name, _ in model.named_parameters() if ".resblocks.1." in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    mask(model, config)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen


def test_an_image_tower_alone(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps(CFG))
    model, config = create_student(str(tmp_path / "cfg.json"), 0, ("image",))
    mask(model, config)
    scatter(model)
    dense, config = materialise(model.eval(), config)
    save_model(dense, config, str(tmp_path / "out"))
    with torch.no_grad():
        pixels = inputs()[0].float()
        found = load_model(str(tmp_path / "out")).model.encode_image(pixels)
        torch.testing.assert_close(found, model.encode_image(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}}, "it is a ModifiedResNet"),
        ({"vision_cfg": {**CFG["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2}}, "pools by attention"),
        ({"vision_cfg": {**CFG["vision_cfg"], "ls_init_value": 0.1}}, "parts beyond attention and MLP"),
        ({"vision_cfg": {**CFG["vision_cfg"], "pos_embed_type": "sin_cos_2d"}}, "its positions are fixed"),
        ({"vision_cfg": {**CFG["vision_cfg"], "qk_norm": True}}, "parts beyond attention and MLP"),
        ({"custom_text": True, "text_cfg": {**CFG["text_cfg"], "embed_cls": True}}, "has a class token"),
    ],
)
def test_other_towers_are_refused(make: Make, changes: dict[str, Any], says: str) -> None:
    model, config = make(**changes)
    with pytest.raises(UserError, match=f"tower cannot be pruned automatically.*{says}"):
        mask(model, config)


def test_the_drawing_shows_every_layer(make: Make) -> None:
    model, config = make()
    mask(model, config)
    scatter(model)
    report = pruning_report(model, PruneSettings(target=0.5))
    assert json.loads(json.dumps(report)) == report
    drawing = str(draw_architecture(report))
    for tower in report["towers"].values():
        assert f"{tower['width']} of {tower['full']['width']}" in drawing
        for layer in tower["layers"]:
            assert f">{layer['mlp']:,}</text>" in drawing
    assert drawing.count(">layer 3</text>") == 2
    kept = sum(layer["heads"] for tower in report["towers"].values() for layer in tower["layers"])
    assert drawing.count("fill: var(--c0)") == kept
    assert drawing.count("fill: var(--paper)") == 3 * 4 + 3 * 3 - kept
