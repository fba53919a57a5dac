"""Every loss against its formula in numpy float64: values, gradients, several teachers, parts of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.losses import LOSSES, Embeddings, Loss, LossShape
from distill.losses.gradient import contrastive_gradients
from shards import UserError
from tests.distill.loss_formulas import Array, Side, differences, formula, slope_along, softmax, unit

B, DS = 8, 3
TEACHERS = {"as wide": (3,), "wider": (5,), "two": (3, 4)}
OPTIONS = {"gd": ("form", "intended", "reference")} | dict.fromkeys(
    ("icl", "afd"), ("scale", "exponentiated", "reference")
)
CASES = [(name, option) for name in LOSSES for option in OPTIONS.get(name, ("", ""))[1:]]
PROJECTING = ("fd", "gd", "icl", "afd")
each_loss = pytest.mark.parametrize(("name", "option"), CASES)


def side(seed: int, width: int, scale: float, bias: float) -> Side:
    random = np.random.default_rng(seed)
    image, text = (unit(random.normal(size=(B, width))) for _ in range(2))
    return Side(image, text, scale, bias)


def student(width: int = DS) -> Side:
    """Its rows have lengths as a tower gives them, each its own."""
    random = np.random.default_rng(1)
    image, text = (unit(random.normal(size=(B, width))) * random.uniform(2, 9, size=(B, 1)) for _ in range(2))
    return Side(image, text, 9.0, -2.0)


def teachers(widths: tuple[int, ...]) -> list[Side]:
    return [side(10 + place, width, 20.0 - 7 * place, -4.0 + place) for place, width in enumerate(widths)]


def make(name: str, option: str, widths: tuple[int, ...], width: int = DS) -> Loss:
    torch.manual_seed(0)
    options = {OPTIONS[name][0]: option} if option else {}
    return LOSSES[name](LossShape(width, widths), **options).double()


def embeddings(of: Side, dtype: torch.dtype = torch.float64, *, trained: bool = False) -> Embeddings:
    values = (of.raw_image, of.raw_text, of.scale, of.bias)
    return Embeddings.of_raw(*(torch.tensor(value, dtype=dtype, requires_grad=trained) for value in values))


def leaves(of: Embeddings, loss: Loss) -> dict[str, Tensor]:
    own = {"image": of.raw_image, "text": of.raw_text, "scale": of.logit_scale, "bias": of.logit_bias}
    return {**own, **dict(loss.named_parameters())}


def run(loss: Loss, student: Side, teachers: list[Side], rows: slice = slice(None)) -> tuple[float, dict[str, Array]]:
    """The loss's value, and its gradient by the student's embeddings, scale and bias and by its own parameters."""
    ours = embeddings(student, trained=True)
    value = loss(ours, [embeddings(teacher) for teacher in teachers], rows)
    assert value.dtype == torch.float64
    assert value.shape == ()
    by = leaves(ours, loss)
    gradients = torch.autograd.grad(value, list(by.values()), allow_unused=True, materialize_grads=True)
    return float(value.detach()), {name: g.numpy() for name, g in zip(by, gradients, strict=True)}


def places(of: Side) -> dict[str, Array]:
    """What a loss is differentiated by, beside its own parameters."""
    return {"image": of.raw_image, "text": of.raw_text, "scale": np.array(of.scale), "bias": np.array(of.bias)}


@each_loss
@pytest.mark.parametrize("widths", TEACHERS.values(), ids=TEACHERS)
def test_values_and_gradients_are_the_formulas(name: str, option: str, widths: tuple[int, ...]) -> None:
    loss, ours, theirs = make(name, option, widths), student(), teachers(widths)
    parameters = {name: value.detach().numpy() for name, value in loss.named_parameters()}

    def expected(at: dict[str, Array]) -> float:
        at = dict(at)
        moved = Side(at.pop("image"), at.pop("text"), at.pop("scale"), at.pop("bias"))
        return formula(name, option, moved, theirs, at)

    start = places(ours)
    value, gradients = run(loss, ours, theirs)
    assert value == pytest.approx(expected({**start, **parameters}), rel=1e-10)
    slopes = differences(expected, {**start, **parameters})
    largest = max(np.abs(slope).max() for slope in slopes.values())
    for leaf, slope in slopes.items():
        assert np.abs(gradients[leaf] - slope).max() < 1e-8 * largest, leaf


@pytest.mark.parametrize("widths", [(24, 32), (512, 768), (768, 512)], ids=str)
@pytest.mark.parametrize(("name", "option"), [case for case in CASES if case[0] in PROJECTING])
def test_projections_map_raw_rows_at_the_widths_of_models(name: str, option: str, widths: tuple[int, int]) -> None:
    """To 1e-9, the gradient by each leaf along a way drawn at random."""
    narrow, wide = widths
    loss, ours, theirs = make(name, option, (wide,), narrow), student(narrow), teachers((wide,))
    parameters = {name: value.detach().numpy() for name, value in loss.named_parameters()}

    def expected(at: dict[str, Array]) -> Any:
        at = dict(at)
        moved = Side(at.pop("image"), at.pop("text"), at.pop("scale"), at.pop("bias"))
        return formula(name, option, moved, theirs, at, by_hand=True)

    value, gradients = run(loss, ours, theirs)
    start = {**places(ours), **parameters}
    assert value == pytest.approx(float(expected(start)), rel=1e-11)
    random = np.random.default_rng(5)
    for leaf, array in start.items():
        way = unit(random.normal(size=(1, array.size))).reshape(array.shape)
        slope = slope_along(expected, start, leaf, way)
        # Of a slope far below the value the differences have lost as many digits: to rounding, 1e-12 of the value.
        assert float((gradients[leaf] * way).sum()) == pytest.approx(slope, rel=1e-9, abs=1e-12 * abs(value)), leaf


@pytest.mark.parametrize("name", PROJECTING)
def test_a_projection_without_raw_rows_says_what_is_missing(name: str) -> None:
    ours, theirs = embeddings(student()), [embeddings(teacher) for teacher in teachers((5,))]
    units = Embeddings(ours.image, ours.text, ours.logit_scale)
    with pytest.raises(ValueError, match=r"to 5 dimensions maps the student's raw embeddings.*Embeddings\.of_raw"):
        make(name, "intended" if name == "gd" else "", (5,))(units, theirs)
    assert make(name, "", (3,))(units, [embeddings(teacher) for teacher in teachers((3,))]).isfinite()


@each_loss
@pytest.mark.parametrize("parts", [2, 4])
def test_the_mean_over_parts_of_a_batch_is_the_whole(name: str, option: str, parts: int) -> None:
    loss, ours, theirs = make(name, option, TEACHERS["two"]), student(), teachers(TEACHERS["two"])
    value, gradients = run(loss, ours, theirs)
    size = B // parts
    shares = [run(loss, ours, theirs, slice(start, start + size)) for start in range(0, B, size)]
    assert np.mean([share[0] for share in shares]) == pytest.approx(value, rel=1e-12)
    assert np.ptp([share[0] for share in shares]) > 1e-3 * value, "no part of the work was left to others"
    for leaf, gradient in gradients.items():
        assert np.abs(np.mean([share[1][leaf] for share in shares], axis=0) - gradient).max() < 1e-12, leaf


@each_loss
def test_the_order_of_a_batch_does_not_matter(name: str, option: str) -> None:
    loss, ours, theirs = make(name, option, TEACHERS["two"]), student(), teachers(TEACHERS["two"])
    value, gradients = run(loss, ours, theirs)
    turn = np.random.default_rng(0).permutation(B)
    turned = [Side(of.raw_image[turn], of.raw_text[turn], of.scale, of.bias) for of in (ours, *theirs)]
    turned_value, turned_gradients = run(loss, turned[0], turned[1:])
    assert turned_value == pytest.approx(value, rel=1e-12)
    for tower in ("image", "text"):
        assert np.abs(gradients[tower][turn] - turned_gradients[tower]).max() < 1e-12


@each_loss
def test_teachers_matter_to_those_that_need_one(name: str, option: str) -> None:
    loss, ours, theirs = make(name, option, (DS,)), student(), teachers((DS,))
    value, _ = run(loss, ours, theirs)
    flipped = Side(theirs[0].image[::-1].copy(), theirs[0].text, theirs[0].scale, theirs[0].bias)
    assert (run(loss, ours, [flipped])[0] != pytest.approx(value, rel=1e-6)) is loss.needs_teacher
    if not loss.needs_teacher:
        assert run(loss, ours, [])[0] == value
    # Of those that look at the teacher's rows alone, none must look at its scale.
    louder = Side(theirs[0].image, theirs[0].text, 60.0, theirs[0].bias)
    heard = name in ("affinity", "crd", "gd", "reinforcement", "sigmoid_affinity")
    assert (run(loss, ours, [louder])[0] != pytest.approx(value, rel=1e-6)) is heard


def test_gradients_of_the_contrastive_loss_are_those_of_autograd() -> None:
    """Direction by direction; and they can be differentiated again, by everything they come from."""
    ours = embeddings(student(), trained=True)
    by = (ours.image, ours.text, ours.logit_scale)
    for queries, keys in ((ours.image, ours.text), (ours.text, ours.image)):
        loss = torch.nn.functional.cross_entropy(ours.logit_scale * queries @ keys.T, torch.arange(B))
        expected = torch.autograd.grad(loss, (queries, keys), create_graph=True)
        for got, wanted in zip(contrastive_gradients(queries, keys, ours.logit_scale), expected, strict=True):
            assert (got - wanted).abs().max() < 1e-14
            again, wanted_again = (torch.autograd.grad(g.pow(3).sum(), by, retain_graph=True) for g in (got, wanted))
            for slope, wanted_slope in zip(again, wanted_again, strict=True):
                assert (slope - wanted_slope).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["affinity", "crd", "fd", "gd", "reinforcement", "sigmoid_affinity"])
def test_a_student_that_is_its_teacher_is_left_alone(name: str) -> None:
    """Nothing pulls at it, its scale or its bias; what loss remains is the entropy of what the teacher says."""
    teacher = teachers((DS,))[0]
    value, gradients = run(make(name, "intended" if name == "gd" else "", (DS,)), teacher, [teacher])
    assert max(np.abs(gradient).max() for gradient in gradients.values()) < 1e-13
    pairs = 1 / (1 + np.exp(-teacher.logits - teacher.bias))
    both = -sum((p * np.log(p)).sum() / B / 2 for p in (softmax(teacher.logits), softmax(teacher.logits.T)))
    each = -(pairs * np.log(pairs) + (1 - pairs) * np.log(1 - pairs)).sum() / B
    entropy = {"affinity": both, "reinforcement": both, "sigmoid_affinity": each}
    assert value == pytest.approx(entropy.get(name, 0.0), rel=1e-12, abs=1e-15)


def test_affinity_of_flat_and_of_certain_teachers() -> None:
    """A teacher at scale 0 wants every pair alike; one at a huge scale is plain CLIP where it is right."""
    ours, loss = student(), make("affinity", "", (DS,))
    flat = Side(ours.text, ours.image, 0.0)
    expected = -(np.log(softmax(ours.logits)).mean() + np.log(softmax(ours.logits.T)).mean()) / 2
    assert run(loss, ours, [flat])[0] == pytest.approx(expected, rel=1e-12)
    sure = Side(ours.image, ours.image, 1e4)
    plain = run(make("contrastive", "", ()), ours, [])[0]
    assert run(loss, ours, [sure])[0] == pytest.approx(plain, rel=1e-9)


def test_relational_and_reinforcement_pull_as_affinity_does() -> None:
    ours, theirs = student(), teachers(TEACHERS["two"])
    runs = {name: run(make(name, "", TEACHERS["two"]), ours, theirs) for name in ("affinity", "crd", "reinforcement")}
    assert runs["reinforcement"][0] == pytest.approx(runs["affinity"][0], rel=1e-12)
    assert runs["crd"][0] < runs["affinity"][0]
    for name in ("crd", "reinforcement"):
        for leaf, gradient in runs["affinity"][1].items():
            assert np.abs(runs[name][1][leaf] - gradient).max() < 1e-12


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_with_another_value_is_refused(name: str) -> None:
    option = OPTIONS[name][0]
    wrong: Any
    for wrong in ("exact", None, 1):
        with pytest.raises(UserError, match=rf"{name}'s {option} is {wrong!r}.*Use \w+ or reference"):
            LOSSES[name](LossShape(DS, (DS,)), **{option: wrong})


@each_loss
@pytest.mark.parametrize("wide", ["student", "teachers", "loss"])
def test_mixed_dtypes_meet_in_the_wider_one(name: str, option: str, wide: str) -> None:
    """As torch promotes: the value is float64's as far as float32 inputs allow."""
    widths = (DS, 5)
    ours, theirs, loss = student(), teachers(widths), make(name, option, widths)
    exact = run(loss, ours, theirs)[0]
    kinds = {part: torch.float64 if part == wide else torch.float32 for part in ("student", "teachers", "loss")}
    mixed = embeddings(ours, kinds["student"], trained=True)
    value = loss.to(kinds["loss"])(mixed, [embeddings(of, kinds["teachers"]) for of in theirs])
    value.backward()
    assert float(value.detach()) == pytest.approx(exact, rel=1e-5)
    assert mixed.raw_image is not None
    assert mixed.raw_image.grad is not None
    assert mixed.raw_image.grad.dtype == kinds["student"]
    if wide == "student" or (wide == "teachers" and loss.needs_teacher):
        assert value.dtype == torch.float64


def hard_case(kind: str) -> tuple[Side, list[Side]]:
    """Batches that are hard on floats, at the scale CLIP ends with."""
    sides = [side(1, DS, 100.0, -10.0), side(2, DS, 100.0, -10.0), side(3, 4, 60.0, -10.0)]
    if kind == "one sample":
        sides = [Side(of.image[:1], of.text[:1], of.scale, of.bias) for of in sides]
    elif kind == "all rows alike":
        sides = [Side(of.image[[0] * B], of.text[[0] * B], of.scale, of.bias) for of in sides]
    elif kind == "all pairs met":
        sides = [Side(of.image, of.image, of.scale, of.bias) for of in sides]
    elif kind == "all pairs opposed":
        sides = [Side(of.image, -of.image, 1e4, of.bias) for of in sides]
    return sides[0], sides[1:]


@each_loss
@pytest.mark.parametrize("kind", ["any", "one sample", "all rows alike", "all pairs met", "all pairs opposed"])
def test_float32_is_finite_and_near_float64(name: str, option: str, kind: str) -> None:
    ours, theirs = hard_case(kind)
    loss = make(name, option, (DS, 4))
    exact, exact_gradients = run(loss, ours, theirs)
    single = embeddings(ours, torch.float32, trained=True)
    value = loss.float()(single, [embeddings(of, torch.float32) for of in theirs])
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(exact, rel=1e-4, abs=1e-5)
    by = leaves(single, loss)
    gradients = torch.autograd.grad(value, list(by.values()), allow_unused=True, materialize_grads=True)
    largest = max(np.abs(gradient).max() for gradient in exact_gradients.values())
    for leaf, gradient in zip(by, gradients, strict=True):
        assert np.abs(gradient.numpy() - exact_gradients[leaf]).max() < 1e-4 * largest + 1e-5, leaf
