"""Losses against their formulas in numpy float64, and their gradients against finite differences of those."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from distill.losses import (
    LOSSES,
    AffinityMimicking,
    Contrastive,
    Embeddings,
    FeatureDistillation,
    Loss,
    LossShape,
    WeightedSum,
)

Array = npt.NDArray[np.float64]
B, DS, DT = 6, 5, 8


def unit(seed: int, width: int) -> Array:
    rows = np.random.default_rng(seed).normal(size=(B, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(logits: Array, target: Array) -> float:
    return float(-(target * log_softmax(logits)).sum(axis=1).mean())


class Case:
    """Student and teacher embeddings, and a loss written from its formula."""

    def __init__(
        self, loss: Loss, formula: Callable[[Array, Array, float], float], teacher: tuple[Array, Array]
    ) -> None:
        self.loss, self.formula = loss.double(), formula
        self.image, self.text, self.scale = unit(1, DS), unit(2, DS), 9.0
        self.teacher = Embeddings(torch.from_numpy(teacher[0]), torch.from_numpy(teacher[1]), 30.0)

    def run(self) -> tuple[float, list[Array]]:
        """The loss's own value, and its gradients by image, text and scale."""
        tensors = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in self.values()]
        value = self.loss(Embeddings(*tensors), self.teacher)
        gradients = torch.autograd.grad(value, tensors, allow_unused=True)
        filled = [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, tensors, strict=True)]
        return float(value.detach()), [gradient.numpy() for gradient in filled]

    def values(self) -> list[Array | float]:
        return [self.image, self.text, self.scale]

    def differences(self, step: float = 1e-5) -> list[Array]:
        """Central differences of the formula."""
        found = []
        for place, value in enumerate(self.values()):
            flat = np.atleast_1d(np.array(value, np.float64))
            slopes = np.zeros_like(flat)
            for index in np.ndindex(flat.shape):
                ends = []
                for sign in (1, -1):
                    moved = flat.copy()
                    moved[index] += sign * step
                    arguments = self.values()
                    arguments[place] = moved if np.ndim(value) else float(moved[0])
                    ends.append(self.formula(*arguments))
                slopes[index] = (ends[0] - ends[1]) / (2 * step)
            found.append(slopes.reshape(np.shape(value)))
        return found


def contrastive(image: Array, text: Array, scale: float) -> float:
    logits = scale * image @ text.T
    return 0.5 * (cross_entropy(logits, np.eye(B)) + cross_entropy(logits.T, np.eye(B)))


def contrastive_case() -> Case:
    return Case(Contrastive(LossShape(DS, None)), contrastive, (unit(3, DT), unit(4, DT)))


def affinity_case() -> Case:
    teacher = unit(3, DT), unit(4, DT)

    def affinity(image: Array, text: Array, scale: float) -> float:
        ours, theirs = scale * image @ text.T, 30.0 * teacher[0] @ teacher[1].T
        forth = cross_entropy(ours, np.exp(log_softmax(theirs)))
        back = cross_entropy(ours.T, np.exp(log_softmax(theirs.T)))
        return 0.5 * (forth + back)

    return Case(AffinityMimicking(LossShape(DS, DT)), affinity, teacher)


def feature_case(*, projected: bool) -> Case:
    width = DT if projected else DS
    teacher = unit(3, width), unit(4, width)
    torch.manual_seed(0)
    loss = FeatureDistillation(LossShape(DS, width))
    maps = {}
    if projected:
        maps = {name: value.detach().double().numpy() for name, value in loss.named_parameters()}
        assert {name: value.shape for name, value in maps.items()} == {
            "image_map.weight": (DT, DS),
            "image_map.bias": (DT,),
            "text_map.weight": (DT, DS),
            "text_map.bias": (DT,),
        }

    def feature(image: Array, text: Array, scale: float) -> float:
        del scale
        total = 0.0
        for name, rows, target in (("image", image, teacher[0]), ("text", text, teacher[1])):
            out = rows
            if projected:
                out = rows @ maps[f"{name}_map.weight"].T + maps[f"{name}_map.bias"]
                out = out / np.linalg.norm(out, axis=1, keepdims=True)
            total += ((out - target) ** 2).sum() / (B * width)
        return float(total)

    return Case(loss, feature, teacher)


CASES: dict[str, Callable[[], Case]] = {
    "contrastive": contrastive_case,
    "affinity": affinity_case,
    "feature": lambda: feature_case(projected=False),
    "feature projected": lambda: feature_case(projected=True),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_formulas(name: str) -> None:
    case = CASES[name]()
    value, gradients = case.run()
    assert value == pytest.approx(case.formula(case.image, case.text, case.scale), rel=1e-12)
    for got, expected in zip(gradients, case.differences(), strict=True):
        assert np.abs(got - expected).max() < 1e-8
    assert max(np.abs(gradient).max() for gradient in gradients) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_a_batch_does_not_matter(name: str) -> None:
    case = CASES[name]()
    value, gradients = case.run()
    turn = np.random.default_rng(0).permutation(B)
    case.image, case.text = case.image[turn], case.text[turn]
    rows = torch.from_numpy(turn)
    case.teacher = Embeddings(case.teacher.image[rows], case.teacher.text[rows], case.teacher.logit_scale)
    turned_value, turned_gradients = case.run()
    assert turned_value == pytest.approx(value, rel=1e-12)
    for before, after in zip(gradients[:2], turned_gradients[:2], strict=True):
        assert np.abs(before[turn] - after).max() < 1e-12


def test_a_student_that_is_its_teacher_is_left_alone_by_affinity() -> None:
    case = affinity_case()
    case.image, case.text, case.scale = unit(3, DT), unit(4, DT), 30.0
    value, gradients = case.run()
    assert max(np.abs(gradient).max() for gradient in gradients) < 1e-14
    # What remains is the teacher's own entropy: no student comes below it.
    theirs = log_softmax(30.0 * unit(3, DT) @ unit(4, DT).T)
    back = log_softmax(30.0 * unit(4, DT) @ unit(3, DT).T)
    entropy = -0.5 * ((np.exp(theirs) * theirs).sum(axis=1).mean() + (np.exp(back) * back).sum(axis=1).mean())
    assert value == pytest.approx(entropy, rel=1e-12)
    case.scale = 31.0
    assert case.run()[0] > value


def test_a_student_that_is_its_teacher_has_no_feature_loss() -> None:
    case = feature_case(projected=False)
    case.image, case.text = unit(3, DS), unit(4, DS)
    value, gradients = case.run()
    assert value == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_the_teacher_and_its_scale_matter_where_they_should() -> None:
    for name, expected in (("contrastive", False), ("affinity", True), ("feature", True)):
        case = CASES[name]()
        value, _ = case.run()
        case.teacher = Embeddings(case.teacher.image.flip(0), case.teacher.text, case.teacher.logit_scale)
        assert (case.run()[0] != pytest.approx(value, rel=1e-6)) is expected
        assert case.loss.needs_teacher is expected
    case = affinity_case()
    value, _ = case.run()
    case.teacher = Embeddings(case.teacher.image, case.teacher.text, 60.0)
    assert case.run()[0] != pytest.approx(value, rel=1e-6)


def test_affinity_of_flat_and_of_certain_teachers() -> None:
    """A teacher at scale 0 wants every pair alike; one at a huge scale is plain CLIP where it is right."""
    case = affinity_case()
    case.teacher = Embeddings(case.teacher.image, case.teacher.text, 0.0)
    logits = case.scale * case.image @ case.text.T
    flat = np.full((B, B), 1 / B)
    assert case.run()[0] == pytest.approx((cross_entropy(logits, flat) + cross_entropy(logits.T, flat)) / 2, rel=1e-12)
    sure = torch.from_numpy(unit(3, DT))
    case.teacher = Embeddings(sure, sure, 1e4)
    assert case.run()[0] == pytest.approx(contrastive(case.image, case.text, case.scale), rel=1e-9)


def test_large_scales_stay_finite_in_float32() -> None:
    for name in ("contrastive", "affinity"):
        case = CASES[name]()
        image, text = (torch.tensor(rows, dtype=torch.float32, requires_grad=True) for rows in (case.image, case.text))
        teacher = Embeddings(case.teacher.image.float(), case.teacher.text.float(), 1e4)
        value = LOSSES[name](LossShape(DS, DT))(Embeddings(image, text, 1e4), teacher)
        value.backward()
        assert torch.isfinite(value)
        assert image.grad is not None
        assert torch.isfinite(image.grad).all()


def test_projections_take_gradients() -> None:
    case = feature_case(projected=True)
    tensors = [torch.tensor(value, dtype=torch.float64) for value in case.values()]
    case.loss(Embeddings(*tensors), case.teacher).backward()
    for name, parameter in case.loss.named_parameters():
        assert parameter.grad is not None, name
        step, slot = 1e-6, (0,) * parameter.ndim
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[slot] += sign * step
                ends.append(float(case.loss(Embeddings(*tensors), case.teacher)))
                parameter[slot] -= sign * step
        assert float(parameter.grad[slot]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8), name


def test_a_weighted_sum_adds_what_it_reports() -> None:
    shape = LossShape(DS, DS)
    weights = {"contrastive": 0.5, "affinity": 2.0, "feature": 2000.0}
    total = WeightedSum({name: LOSSES[name](shape) for name in weights}, weights).double()
    image, text = torch.from_numpy(unit(1, DS)).requires_grad_(), torch.from_numpy(unit(2, DS))
    teacher = Embeddings(torch.from_numpy(unit(3, DS)), torch.from_numpy(unit(4, DS)), 30.0)
    value, terms = total(Embeddings(image, text, 9.0), teacher)
    assert set(terms) == set(weights)
    assert not any(term.requires_grad for term in terms.values())
    assert float(value.detach()) == pytest.approx(
        sum(weights[name] * float(terms[name]) for name in weights), rel=1e-12
    )
    (gradient,) = torch.autograd.grad(value, image)
    parts = []
    for name, weight in weights.items():
        alone = LOSSES[name](shape).double()(Embeddings(image, text, 9.0), teacher)
        parts.append(weight * torch.autograd.grad(alone, image)[0])
    assert (gradient - sum(parts)).abs().max() < 1e-12
