"""The maths for people who bring their own training: public names, what importing them loads, float64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_models import create_student
from clip_models.inheritance import inherit
from clip_models.shapes import FullShape, LayerShape, TowerShape
from distill.losses import LOSSES, Embeddings, LossShape
from distill.patch_masking import mask_patches
from distill.pruning.gates import Gates, drawn, open_probability, selected
from distill.pruning.sparsity import expected_sparsity, sparsity_penalty

ROOT = Path(__file__).parents[2]
HEAVY = {"open_clip", "timm", "torchvision", "transformers", "ray", "pyarrow"}
WITHOUT_TORCH = ["clip_models.shapes", "distill.run_folder", "distill.training.schedule"]
WITH_TORCH = [
    "distill.losses",
    "distill.pruning.gates",
    "distill.pruning.sparsity",
    "distill.patch_masking",
    "clip_models.inheritance",
]


def table_of_names() -> dict[str, list[str]]:
    """By module, what `docs/library.md` says it has."""
    rows = [
        line.split("|") for line in (ROOT / "docs" / "library.md").read_text().splitlines() if line.startswith("| `")
    ]
    return {home.strip(" `"): [name.strip(" `") for name in names.split(",")] for _, names, home, *_ in rows}


def test_the_documented_names_are_there() -> None:
    found = table_of_names()
    assert len(found) == 9
    for module, names in found.items():
        home = __import__(module, fromlist=names)
        assert [name for name in names if not hasattr(home, name)] == []


def test_importing_the_maths_loads_torch_at_most() -> None:
    """And the documented example runs."""
    examples = (ROOT / "docs" / "library.md").read_text().split("```python\n")[1:]
    (example,) = (text for text in examples if "distill.losses" in text)
    program = f"""
import contextlib, importlib, io, json, sys
loaded = {{}}
for module in {WITHOUT_TORCH + WITH_TORCH}:
    importlib.import_module(module)
    loaded[module] = sorted({{name.partition(".")[0] for name in sys.modules}})
with contextlib.redirect_stdout(io.StringIO()) as shown:
    exec({example.partition("```")[0]!r})
loaded["the example"] = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps([loaded, shown.getvalue()]))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded, shown = json.loads(done.stdout)
    assert shown.startswith("tensor(")
    for module, found in loaded.items():
        assert not HEAVY & set(found), module
        assert module not in WITHOUT_TORCH or "torch" not in found, module


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("length", [9.0, 0.9, float("nan")])
def test_embeddings_that_are_not_of_unit_norm_are_refused(tower: str, length: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {name: F.normalize(torch.randn(4, 8, generator=generator), dim=-1) for name in ("image", "text")}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        Embeddings(**{name: each.to(dtype) for name, each in rows.items()}, logit_scale=1.0)
    rows[tower][2] *= length
    with pytest.raises(ValueError, match=rf"row 2 of `{tower}` has the norm {length:.4g}, not 1.*Embeddings\.of_raw"):
        Embeddings(**rows, logit_scale=1.0)
    # What a student's towers return has any length, and a model of one tower has no rows of the other.
    assert Embeddings.of_raw(**rows, logit_scale=1.0).image.shape == (4, 8)
    assert Embeddings(torch.empty(4, 0), F.normalize(torch.ones(4, 8), dim=-1), 1.0).image.shape == (4, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_take_float64_beside_a_teacher_in_float32(name: str) -> None:
    """As if the teacher's rows had been float64 all the time, to what rounding them costs."""
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    said = [F.normalize(torch.randn(6, 12, generator=generator), dim=-1) for _ in range(2)]
    loss = LOSSES[name](LossShape(8, (12,))).double()
    values = []
    for dtype in (torch.float32, torch.float64):
        student = Embeddings.of_raw(image.requires_grad_(), text, torch.tensor(9.0, dtype=torch.float64))
        value = loss(student, [Embeddings(*(rows.to(dtype) for rows in said), 20.0, -4.0)])
        (gradient,) = torch.autograd.grad(value, image)
        assert value.dtype == gradient.dtype == torch.float64
        values.append(float(value.detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_gates_and_their_penalty_take_float64() -> None:
    full = FullShape(width=8, heads=2, mlp=16)
    gates = Gates(TowerShape(width=8, layers=(LayerShape(heads=2, mlp=16),) * 2, full=full)).double()
    opened = gates.trained()
    rows = [opened.hidden, *opened.heads, *opened.mlp]
    log_alpha = torch.linspace(-3, 3, 8, dtype=torch.float64)
    rows += [drawn(log_alpha, torch.full_like(log_alpha, 0.5)), open_probability(log_alpha), selected(log_alpha)]
    rows += [sparsity_penalty(expected_sparsity([gates]), 0.5, log_alpha.new_ones(2))]
    assert {row.dtype for row in rows} == {torch.float64}
    # All is open at first: 8·(4·144/8 + 2·32) of 2·(4·64 + 32 + 2·8·16 + 24) parameters, where half are asked for.
    gap = 0.5 - (1 - 1088 / 1136)
    assert float(rows[-1].detach()) == pytest.approx(gap + gap**2, rel=1e-4)


def tiny(path: Path, seed: int, **vision: Any) -> tuple[Any, Any]:
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    tower = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2, **vision}
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}))
    return create_student(str(path), seed)


class Bare:
    """All that a source of weights has to have."""

    def __init__(self, model: Any, config: Any) -> None:
        self.name, self.model, self.config = "mine", model, config


def test_inheritance_and_patch_masking_take_models_alone_in_float64(tmp_path: Path) -> None:
    teacher, theirs = tiny(tmp_path / "teacher.json", 0)
    student, ours = tiny(tmp_path / "student.json", 1, layers=1)
    student.double()
    rows = inherit(student, ours, Bare(teacher, theirs))
    assert len(rows) > 10
    assert torch.equal(student.visual.conv1.weight, teacher.visual.conv1.weight.double())

    def embedded(model: Any) -> Tensor:
        rows: Tensor = model.encode_image(torch.linspace(-1, 1, 3 * 32 * 32, dtype=torch.float64).reshape(1, 3, 32, 32))
        return rows

    whole = embedded(student.eval())
    mask_patches(student, 0.5)
    assert torch.equal(embedded(student.eval()), whole)
    seen = embedded(student.train())
    assert seen.dtype == torch.float64
    assert not torch.equal(seen, whole)
