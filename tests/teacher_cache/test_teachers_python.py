"""Teachers of the user's own: what a class must have, and what is made of what it returns."""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards import UserError
from teacher_cache.teachers import Forward, load_teacher

Write = Callable[[str], str]

_NAMES = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """`write(source)`: a module with a class Mine, importable; returns its spec."""
    monkeypatch.syspath_prepend(tmp_path)

    def save(source: str) -> str:
        name = f"teachers_of_mine_{next(_NAMES)}"
        (tmp_path / f"{name}.py").write_text("import numpy, torch\n" + textwrap.dedent(source))
        return f"python:{name}:Mine"

    return save


PLAIN = """
class Mine:
    image_size = 8
    identity = {"version": VERSION}

    def embed_images(self, pixels):
        assert pixels.dtype == torch.uint8
        return pixels.float().mean(dim=(1, 2)) + 1

    def embed_texts(self, texts):
        return numpy.array([[len(text), 1.0, 2.0] for text in texts])
"""

MODULE = """
class Mine(torch.nn.Module):
    image_size = 8
    logit_scale = 50
    logit_bias = -3.5
    resize_mode = "squash"
    interpolation = "bilinear"

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 5)
        self.linear.weight.data.fill_(WEIGHT)
        self.dropout = torch.nn.Dropout(0.5)

    def embed_images(self, pixels):
        return self.dropout(self.linear(pixels.float().mean(dim=(1, 2))))
"""


def pixels(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8))


def test_tensors_and_arrays_become_unit_rows(write: Write) -> None:
    teacher = load_teacher(write(PLAIN.replace("VERSION", "1")))
    images, texts = teacher.embed_images(pixels(4)), teacher.embed_texts(["", "four"])
    means = pixels(4).numpy().astype(np.float64).mean(axis=(1, 2)) + 1
    np.testing.assert_allclose(images.numpy(), means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)
    rows = np.array([[0, 1, 2], [4, 1, 2]], float)
    np.testing.assert_allclose(texts.numpy(), rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    assert images.dtype == texts.dtype == torch.float32
    assert (teacher.embed_dim, teacher.image_size, teacher.has_text) == (3, 8, True)
    assert (teacher.logit_scale, teacher.logit_bias) == (100, None)
    assert (teacher.resize_mode, teacher.interpolation) == ("shortest", "bicubic")


def test_a_module_is_evaluated_and_its_attributes_are_taken(write: Write) -> None:
    teacher = load_teacher(write(MODULE.replace("WEIGHT", "0.25")), towers="image")
    assert (teacher.embed_dim, teacher.has_text) == (5, False)
    assert (teacher.logit_scale, teacher.logit_bias) == (50, -3.5)
    assert (teacher.resize_mode, teacher.interpolation) == ("squash", "bilinear")
    assert teacher.identity["preprocess"] == {"size": 8, "resize_mode": "squash", "interpolation": "bilinear"}
    assert torch.equal(teacher.embed_images(pixels(2)), teacher.embed_images(pixels(2)))
    with pytest.raises(UserError, match="has no text tower"):
        teacher.embed_texts(["a cat"])


def test_the_identity_follows_source_state_and_what_the_class_says(write: Write) -> None:
    def parts(source: str) -> dict[str, Any]:
        return load_teacher(write(source)).identity

    one, two = (parts(PLAIN.replace("VERSION", version)) for version in ("1", "2"))
    assert one == parts(PLAIN.replace("VERSION", "1"))
    assert [key for key in one if one[key] != two[key]] == ["source", "identity"]
    commented = parts(PLAIN.replace("VERSION", "1") + "\n# another helper\n")
    assert [key for key in one if one[key] != commented[key]] == ["source"]
    from_environment = MODULE.replace("WEIGHT", "float(__import__('os').environ.get('MINE', '0.25'))")
    with pytest.MonkeyPatch.context() as patch:
        before = parts(from_environment)
        patch.setenv("MINE", "0.5")
        after = parts(from_environment)
    assert [key for key in before if before[key] != after[key]] == ["weights"]


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_that_was_not_asked_for_never_runs(write: Write, tower: Any) -> None:
    other = {"image": "embed_texts", "text": "embed_images"}[tower]
    source = PLAIN.replace("VERSION", "1").replace(f"def {other}(self, ", f"def {other}(self, must_not_run, ")
    assert load_teacher(write(source), towers=tower).embed_dim == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("identity = ", "name = "), "has no identity.*nn.Module"),
        (("identity = {", "identity = {1, "), "cannot be imported"),
        (('{"version": VERSION}', "{1}"), "identity is not JSON-able"),
        (("image_size = 8", "image_size = None"), "image_size is None"),
        (("image_size = 8", "image_size, interpolation = 8, 'lanczos'"), "interpolation is 'lanczos'"),
        (("class Mine", "class Other"), "no attribute 'Mine'"),
        (("import numpy", "import nompy"), "No module named 'nompy'"),
        (("dim=(1, 2)", "dim=(1, 2, 3)"), r"embed_images returned the shape \(1,\) for one input"),
        (("dim=(1, 2)", "dim=(0, 1)"), r"embed_images returned the shape \(8, 3\) for one input"),
        (("[len(text), 1.0, 2.0]", "[1.0, 2.0]"), "differ in width.*3.*2"),
        (("return numpy.array", "return list"), "embed_texts returned a list"),
        (("len(text)", "text.size"), "embed_texts raised AttributeError"),
        (("identity = ", "__init__ = lambda self, path: None; identity = "), "path"),
    ],
)
def test_a_class_that_will_not_do_is_one_clear_error(write: Write, change: tuple[str, str], message: str) -> None:
    spec = write("")
    path = Path(sys.path[0]) / f"{spec.split(':')[1]}.py"
    source = ("import numpy, torch\n" + PLAIN).replace(*change).replace("VERSION", "1")
    path.write_text(source)
    with pytest.raises(UserError, match=message) as caught:
        load_teacher(spec)
    assert caught.value.where == spec
    assert "\n" not in str(caught.value)


def test_rows_that_go_missing_later_are_noticed(write: Write) -> None:
    teacher = load_teacher(write(PLAIN.replace("VERSION", "1").replace("in texts]", "in texts[:2]]")))
    assert teacher.embed_texts(["a", "b"]).shape == (2, 3)
    with pytest.raises(UserError, match=r"embed_texts returned the shape \(2, 3\), not \(5, 3\)"):
        teacher.embed_texts(list("abcde"))


class OnCuda(Forward):
    """Names the device, whether the machine has it or not: a teacher of texts puts nothing on it when it is loaded."""

    def torch_device(self) -> torch.device:
        return torch.device("cuda")


@pytest.mark.parametrize(
    ("forward", "allowed"), [(OnCuda(), False), (OnCuda(precision="bf16"), True), (Forward(device="cpu"), True)]
)
def test_fp32_on_cuda_is_float32_in_convolutions_too(
    write: Write, monkeypatch: pytest.MonkeyPatch, forward: Forward, allowed: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_teacher(write(PLAIN.replace("VERSION", "1")), forward, "text")
    assert torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("spec", ["python:module", "python::Mine", "python:module:"])
def test_a_spec_that_names_no_class(spec: str) -> None:
    with pytest.raises(UserError, match=r"python:package\.module:Class"):
        load_teacher(spec)


def test_a_class_without_towers(write: Write) -> None:
    with pytest.raises(UserError, match="neither embed_images nor embed_texts"):
        load_teacher(write("class Mine:\n    identity = 1"))
    with pytest.raises(UserError, match="no image tower"):
        load_teacher(write("class Mine:\n    identity = 1\n    def embed_texts(self, texts): ..."), towers="image")
