"""Models whose layers differ: what they compute, how they are described, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from clip_models import build_model, create_student, load_model, save_model
from clip_models.pruned import tower_shape, with_shape
from clip_models.shapes import FullShape, LayerShape, TowerShape
from shards.errors import UserError

PLAIN: dict[str, Any] = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16, "mlp_ratio": 3.0},
    "text_cfg": {"context_length": 10, "vocab_size": 60, "width": 24, "heads": 3, "layers": 2},
}
SHAPES = {
    "vision": TowerShape(
        width=21,
        layers=(LayerShape(heads=1, mlp=33), LayerShape(heads=0, mlp=7)),
        full=FullShape(width=32, heads=2, mlp=96),
    ),
    "text": TowerShape(
        width=13,
        layers=(LayerShape(heads=3, mlp=0), LayerShape(heads=0, mlp=0)),
        full=FullShape(width=24, heads=3, mlp=96),
    ),
}


def pruned_cfg() -> dict[str, Any]:
    return with_shape(with_shape(PLAIN, "vision", SHAPES["vision"]), "text", SHAPES["text"])


@pytest.fixture
def pruned(tmp_path: Path) -> str:
    path = tmp_path / "pruned.json"
    path.write_text(json.dumps(pruned_cfg()))
    return str(path)


@torch.no_grad()
def embeddings(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(3, 3, 16, 16, generator=generator).to(model.logit_scale.dtype)
    ids = torch.randint(1, 60, (3, 10), generator=generator)
    return torch.cat([model.encode_image(pixels), model.encode_text(ids)])


@pytest.mark.parametrize("extra", [{}, {"quick_gelu": True}, {"custom_text": True}], ids=str)
def test_blocks_compute_what_open_clips_do(extra: dict[str, Any], tmp_path: Path) -> None:
    cfg = {**PLAIN, **extra}
    (tmp_path / "plain.json").write_text(json.dumps(cfg))
    plain, config = create_student(str(tmp_path / "plain.json"), seed=0)
    plain.double()
    for kind in ("vision", "text"):
        shape = tower_shape(PLAIN, kind)
        assert shape is not None
        cfg = with_shape(cfg, kind, shape)
    ours = build_model({**config, "model_cfg": cfg}).double()
    ours.load_state_dict(plain.state_dict())
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in plain.parameters()]
    torch.testing.assert_close(embeddings(ours), embeddings(plain), rtol=1e-12, atol=1e-12)


def test_the_description_is_read_as_it_was_written(pruned: str) -> None:
    _, config = create_student(pruned, seed=0)
    assert {kind: tower_shape(config["model_cfg"], kind) for kind in ("vision", "text")} == SHAPES
    assert tower_shape(PLAIN, "text") == TowerShape(
        width=24, layers=(LayerShape(heads=3, mlp=96),) * 2, full=FullShape(width=24, heads=3, mlp=96)
    )
    assert "clipstill_pruned" not in PLAIN
    assert tower_shape({"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8}}, "vision") is None
    assert tower_shape({"text_cfg": {"hf_model_name": "bert"}}, "text") is None


def test_a_layer_has_what_it_computes_with(pruned: str) -> None:
    model, _ = create_student(pruned, seed=0)
    names = [name.removeprefix("transformer.resblocks.") for name, _ in model.transformer.named_parameters()]
    assert [name for name in names if name.startswith("resblocks.1.")] == [
        "resblocks.1.attn.out_proj.bias",
        "resblocks.1.mlp.c_proj.bias",
    ]
    blocks = [model.visual.transformer, model.transformer]
    for shape, transformer in zip(SHAPES.values(), blocks, strict=True):
        counted = [p.numel() for name, p in transformer.named_parameters() if ".ln_" not in name]
        assert shape.prunable == sum(counted)
    loss = model.encode_image(torch.randn(2, 3, 16, 16)).sum() + model.encode_text(torch.ones(2, 10).long()).sum()
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == ["logit_scale"]


def test_it_is_created_saved_and_loaded_like_any_other(pruned: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, config = create_student(pruned, seed=3)
    torch.manual_seed(2)
    again, _ = create_student(pruned, seed=3)
    assert torch.equal(embeddings(model), embeddings(again))
    save_model(model, config, str(tmp_path / "out"))
    loaded = load_model(str(tmp_path / "out"))
    assert torch.equal(embeddings(loaded.model), embeddings(model.eval()))
    assert loaded.config == config
    with pytest.raises((TypeError, RuntimeError)):
        open_clip.create_model(f"local-dir:{tmp_path / 'out'}")

    # A folder is a student's architecture too.
    student, taken = create_student(str(tmp_path / "out"), seed=3)
    assert taken == config
    assert torch.equal(embeddings(student.eval()), embeddings(loaded.model))
    image, taken = create_student(str(tmp_path / "out"), 3, ("image",))
    assert taken == {**config, "towers": ["image"]}
    assert not hasattr(image, "transformer")


FULL = {"width": 32, "heads": 2, "mlp": 96}
LAYER = {"heads": 1, "mlp": 33}


def with_entry(**changes: Any) -> dict[str, Any]:
    return {"clipstill_pruned": {"vision": {"full": FULL, "layers": [LAYER, LAYER], **changes}}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clipstill_pruned": []}, r"clipstill_pruned: it is \[\], not an object of vision and text"),
        ({"clipstill_pruned": {"visoin": {}}}, "clipstill_pruned: it has 'visoin'; it should be an object of vision"),
        ({"clipstill_pruned": {"text": [1]}}, r"clipstill_pruned\.text: it is \[1\], not an object of full and layers"),
        ({"clipstill_pruned": {"vision": {"layers": []}}}, r"clipstill_pruned\.vision: it lacks 'full'"),
        (with_entry(full=FULL | {"heads": 0}), r"vision\.full\.heads: it is 0, not a whole number of 1 or more"),
        (with_entry(full=FULL | {"heads": 3}), r"vision\.full\.width: it is 32, no multiple of its 3 heads"),
        (with_entry(full=FULL | {"mlp": 96.0}), r"vision\.full\.mlp: it is 96\.0, not a whole number"),
        (with_entry(full=FULL | {"width": 30}), r"vision_cfg\.width: it is 32, not .* from 1 to the full tower's 30"),
        (with_entry(layers=[]), r"vision\.layers: it is \[\], not a list of {heads, mlp}"),
        (with_entry(layers={"heads": 1, "mlp": 1}), r'vision\.layers: it is {"heads": 1, "mlp": 1}, not a list'),
        (with_entry(layers=[LAYER, [1, 33]]), r"vision\.layers\[1\]: it is \[1, 33\], not an object of heads and mlp"),
        (with_entry(layers=[LAYER, {"heads": 1}]), r"vision\.layers\[1\]: it lacks 'mlp'"),
        (with_entry(layers=[LAYER | {"head": 1}]), r"vision\.layers\[0\]: it has 'head'"),
        (
            with_entry(layers=[LAYER | {"heads": -1}]),
            r"layers\[0\]\.heads: it is -1, not .* from 0 to the full tower's 2",
        ),
        (
            with_entry(layers=[LAYER | {"heads": 3}]),
            r"layers\[0\]\.heads: it is 3, not .* from 0 to the full tower's 2",
        ),
        (with_entry(layers=[LAYER | {"mlp": True}]), r"layers\[0\]\.mlp: it is true, not a whole number"),
        (
            with_entry() | {"vision_cfg": PLAIN["vision_cfg"] | {"layers": [1, 1, 1, 1]}},
            r"clipstill_pruned\.vision: vision_cfg is no plain transformer",
        ),
        (
            with_entry() | {"vision_cfg": {"timm_model_name": "resnet18", "image_size": 32}},
            r"clipstill_pruned\.vision: vision_cfg is no plain transformer",
        ),
    ],
)
def test_a_description_that_is_none_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps({**PLAIN, **changes}))
    with pytest.raises(UserError, match=rf"no model can be built from this configuration: \S*{says}") as caught:
        create_student(str(path), seed=0)
    assert str(caught.value).startswith(str(path))
