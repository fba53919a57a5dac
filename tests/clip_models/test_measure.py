"""Sizes are counted as a person would with a pencil; speeds are what a clock says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_models import create_student
from clip_models.measure import made_by_name, measured_sizes, size_of, throughput
from clip_models.sizes import known_sizes

VIT: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 3},
}


def written(folder: Path, **changes: Any) -> str:
    (folder / "config.json").write_text(json.dumps({**VIT, **changes}))
    return str(folder / "config.json")


def transformer(tokens: int, width: int, layers: int, hidden: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a transformer's blocks."""
    matrices = 4 * width * width + 2 * width * hidden
    others = 4 * width + width + hidden + 4 * width  # biases of QKV and output, of the MLP, two norms
    return layers * (matrices + others), layers * (tokens * matrices + 2 * tokens * tokens * width)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_vit_counts_what_its_formula_says(tmp_path: Path, device: str) -> None:
    size = size_of(made_by_name(written(tmp_path), device))
    tokens, width, dim = 16 + 1, 64, 24
    parameters, macs = transformer(tokens, width, 2, 4 * width)
    patches = 3 * 8 * 8 * width
    # Patches, class token, positions, two norms outside the blocks, projection.
    assert size.image == parameters + patches + width + tokens * width + 4 * width + width * dim
    assert size.image_macs == macs + 16 * patches + width * dim
    parameters, macs = transformer(20, 48, 3, 4 * 48)
    assert size.text == parameters + 20 * 48 + 2 * 48 + 48 * dim
    assert size.text_macs == macs + 48 * dim
    assert size.total == size.image + size.text + 49408 * 48 + 1
    assert size.macs == size.image_macs + size.text_macs


def test_a_text_tower_of_its_own_module_counts_alike(tmp_path: Path) -> None:
    plain = size_of(made_by_name(written(tmp_path), "meta"))
    assert size_of(made_by_name(written(tmp_path, custom_text=True), "meta")) == plain


def test_a_model_without_text_tower_has_no_text(tmp_path: Path) -> None:
    model, _ = create_student(written(tmp_path), 0, ("image",))
    size = size_of(model.eval())
    assert size.text is None
    assert size.text_macs is None
    assert size.macs == size.image_macs > 0
    assert size.total == size.image + 1


def test_a_text_tower_of_another_library_is_left_out_and_no_hub_is_asked(tmp_path: Path) -> None:
    """Of a file as of a name; nothing listens where the hub would be."""
    name = written(tmp_path, text_cfg={"hf_model_name": "no-such-organisation/no-such-model"})
    model = made_by_name(name, "meta")
    assert not hasattr(model, "encode_text")
    assert size_of(model).image == size_of(made_by_name(written(tmp_path), "meta")).image


@pytest.mark.parametrize(
    "vision",
    [
        VIT["vision_cfg"],
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        {"image_size": 32, "timm_model_name": "resnet10t"},
    ],
    ids=["vit", "resnet", "timm"],
)
def test_counting_leaves_torch_and_the_model_as_they_were(tmp_path: Path, vision: dict[str, Any]) -> None:
    """In training mode batch norms learn nothing, and the modules that were frozen in evaluation mode stay there."""
    model, _ = create_student(written(tmp_path, vision_cfg=vision), 0)
    frozen = next(module for module in model.visual.modules() if not list(module.children())).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    in_training = size_of(model)
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module for module in model.modules() if not module.training] == [frozen]
    assert size_of(model.eval()) == in_training
    assert not any(module.training for module in model.modules())


def test_throughput_is_batch_times_rounds_over_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image batch takes 2 ticks of the clock, each text batch 3: known rates."""
    model = made_by_name(written(tmp_path), "cpu")
    now = 0.0
    seen: list[tuple[str, int, bool]] = []

    def taking(name: str, seconds: float) -> Any:
        def encode(given: torch.Tensor) -> None:
            nonlocal now
            now += seconds
            seen.append((name, len(given), torch.is_grad_enabled()))

        return encode

    monkeypatch.setattr(model, "encode_image", taking("image", 2.0))
    monkeypatch.setattr(model, "encode_text", taking("text", 3.0))
    monkeypatch.setattr("clip_models.measure.time.perf_counter", lambda: now)
    rate = throughput(model)
    assert seen == [("image", 32, False)] * 60 + [("text", 32, False)] * 60
    assert rate.images == 16
    assert rate.texts == pytest.approx(32 / 3)
    assert rate.pairs == pytest.approx(32 / 5)


@pytest.mark.parametrize("name", ["clip-mixer-4M", "mobilenetv3_small_100", "TinyCLIP-ViT-8M-16-Text-3M"])
def test_the_table_of_sizes_has_what_is_built(name: str) -> None:
    assert known_sizes()[name] == size_of(made_by_name(name, "meta"))


@pytest.mark.long
def test_the_table_of_sizes_has_every_published_model_as_it_is_built() -> None:
    assert dict(known_sizes()) == measured_sizes()
