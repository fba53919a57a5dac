"""The weighted sum that a run minimises: caption sets, samples no teacher knows, parts, projections in common."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from distill.losses import LOSSES, WITHOUT_TEACHER, Embeddings, LossShape, Targets, WeightedSum

B, DS, WIDTHS = 8, 3, (5, 3)
WEIGHTS = {name: 0.5 + place for place, name in enumerate(LOSSES)}
NEEDY = [name for name, loss in LOSSES.items() if loss.needs_teacher]


def make(names: Mapping[str, float] = WEIGHTS) -> WeightedSum:
    torch.manual_seed(0)
    return WeightedSum({name: LOSSES[name](LossShape(DS, WIDTHS)) for name in names}).double()


def unit(seed: int, width: int) -> Tensor:
    rows = np.random.default_rng(seed).normal(size=(B, width))
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def student(captions: int = 0) -> Embeddings:
    numbers = (torch.tensor(value, dtype=torch.float64) for value in (9.0, -2.0))
    values = [5 * unit(1, DS), 3 * unit(2 + captions, DS), *numbers]
    return Embeddings.of_raw(*(value.requires_grad_() for value in values))


def raw(of: Embeddings) -> tuple[Tensor, Tensor]:
    assert of.raw_image is not None
    assert of.raw_text is not None
    return of.raw_image, of.raw_text


def teachers(captions: int = 0) -> tuple[Embeddings, ...]:
    return tuple(Embeddings(unit(10 + w, w), unit(20 + w + captions, w), 20.0 - w, -4.0) for w in WIDTHS)


def said(present: list[int] | None = None) -> Targets:
    """By the teachers; of samples that are not `present`, nothing that a loss may look at."""
    if present is None:
        return Targets({"txt": teachers()})
    known = torch.zeros(B, dtype=torch.bool)
    known[present] = True
    return Targets({"txt": teachers()}, known).with_rows(lambda rows: torch.where(known[:, None], rows, torch.nan))


def slopes(of: Tensor, ours: Embeddings, total: WeightedSum) -> dict[str, npt.NDArray[np.float64]]:
    by = {"image": ours.raw_image, "text": ours.raw_text, "scale": ours.logit_scale, "bias": ours.logit_bias}
    by |= dict(total.named_parameters())
    gradients = torch.autograd.grad(of, list(by.values()), retain_graph=True)
    return {name: gradient.numpy() for name, gradient in zip(by, gradients, strict=True)}


def test_it_adds_what_it_reports() -> None:
    total, ours = make(), student()
    value, terms = total({"txt": ours}, said(), WEIGHTS)
    assert list(terms) == list(LOSSES)
    assert not any(term.requires_grad for term in terms.values())
    assert float(value.detach()) == pytest.approx(sum(w * float(terms[n]) for n, w in WEIGHTS.items()), rel=1e-12)
    gradient = slopes(value, ours, total)["image"]
    parts = []
    for name, weight in WEIGHTS.items():
        alone = total.losses[name](ours, teachers())
        assert float(alone.detach()) == float(terms[name])
        parts.append(weight * torch.autograd.grad(alone, ours.raw_image, retain_graph=True)[0].numpy())
    assert np.abs(gradient - sum(parts)).max() < 1e-12


def test_caption_sets_count_as_their_mean_and_keep_their_names() -> None:
    total = make()
    ours = {name: student(place) for place, name in enumerate(("txt", "synthetic"))}
    theirs = Targets({name: teachers(place) for place, name in enumerate(ours)})
    value, terms = total(ours, theirs, WEIGHTS)
    assert set(terms) == set(LOSSES) | {f"{loss}/{captions}" for loss in LOSSES for captions in ours}
    alone = {captions: total({captions: own}, theirs, WEIGHTS) for captions, own in ours.items()}
    assert float(value.detach()) == pytest.approx(sum(float(v.detach()) for v, _ in alone.values()) / 2, rel=1e-12)
    for name in LOSSES:
        assert float(terms[name]) == pytest.approx(sum(float(own[name]) for _, own in alone.values()) / 2, rel=1e-12)
    for captions, (_, own) in alone.items():
        assert {name: terms[f"{name}/{captions}"] for name in own} == own


@pytest.mark.parametrize("present", [[0, 1, 2, 5, 7], [4, 6], [3], []], ids=str)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_samples_that_no_teacher_knows_are_left_out_of_its_losses(present: list[int], parts: int) -> None:
    """And the mean over parts, of which some have more of the others than their fellows, is the whole."""
    total, known = make(), torch.tensor(present, dtype=torch.int64)
    ours, theirs = student(), tuple(teacher.only(known) for teacher in teachers())
    size = B // parts
    results = [total({"txt": ours}, said(present), WEIGHTS, slice(at, at + size)) for at in range(0, B, size)]
    terms = {name: np.mean([float(own[name]) for _, own in results]) for name in LOSSES}

    few = Embeddings.of_raw(*(rows[known] for rows in raw(ours)), ours.logit_scale, ours.logit_bias)
    expected = {n: w * total.losses[n](ours, ()) for n, w in WEIGHTS.items() if n not in NEEDY}
    if present:
        expected |= {n: WEIGHTS[n] * total.losses[n](few, theirs) for n in NEEDY}
    for name in LOSSES:
        wanted = float(expected[name].detach()) / WEIGHTS[name] if name in expected else 0.0
        assert terms[name] == pytest.approx(wanted, rel=1e-12, abs=1e-14), name

    by = [*raw(ours), ours.logit_scale, ours.logit_bias, *total.parameters()]
    wanted = torch.autograd.grad(
        sum(expected.values()), by, allow_unused=True, materialize_grads=True, retain_graph=True
    )
    # Every part must have a gradient for everything, if only zeros: processes wait for one another's.
    shares = [slopes(value, ours, total) for value, _ in results]
    for name, gradient in zip(shares[0], wanted, strict=True):
        got = np.mean([share[name] for share in shares], axis=0)
        assert np.abs(got - gradient.numpy()).max() < 1e-12 * max(1, float(gradient.abs().max())), name


def test_a_part_that_no_teacher_knows_still_has_a_gradient_for_everything() -> None:
    """Zero: else one process would wait for a gradient that another never gives."""
    total, ours = make({"fd": 1, "sigmoid_affinity": 1}), student()
    for rows, nothing in ((slice(0, 4), False), (slice(4, 8), True)):
        gradients = slopes(total({"txt": ours}, said([1]), {"fd": 1, "sigmoid_affinity": 1}, rows)[0], ours, total)
        assert all((gradient == 0).all() for gradient in gradients.values()) is nothing


def test_losses_project_the_student_alike() -> None:
    """As CLIP-KD does: one pair of maps a teacher, whatever number of losses; trained by all, stored once."""
    total, ours = make({"crd": 1, "icl": 1, "fd": 1, "gd": 1}), student()
    stored = total.state_dict()
    maps = {f"projections.0.{tower}.{kind}" for tower in ("image", "text") for kind in ("weight", "bias")}
    assert {name.removeprefix("losses.icl.") for name in stored if "projections" in name} == maps
    assert set(stored) == {name for name, _ in total.named_parameters()}
    save(stored)  # Refuses tensors that share memory.

    def gradient(weights: Mapping[str, float]) -> npt.NDArray[np.float64]:
        value, _ = total({"txt": ours}, said(), {"crd": 0, "icl": 0, "fd": 0, "gd": 0} | weights)
        (slope,) = torch.autograd.grad(
            value, dict(total.named_parameters())["losses.icl.projections.0.image.weight"], retain_graph=True
        )
        return slope.numpy()

    each = [gradient({name: 1}) for name in ("icl", "fd", "gd")]
    assert all(np.abs(slope).max() > 1e-4 for slope in each)
    assert np.abs(gradient({"icl": 1, "fd": 1, "gd": 1}) - sum(each)).max() < 1e-14

    other = make({"crd": 1, "icl": 1, "fd": 1, "gd": 1}).float()
    other.load_state_dict({name: torch.ones_like(value).float() for name, value in stored.items()})
    other.double()
    ones = torch.ones(B, DS, dtype=torch.float64)
    for name in ("icl", "fd", "gd"):
        # Maps of ones, and a bias: all rows become the same one.
        (image, _), _ = other.losses[name].projected(Embeddings.of_raw(ones, ones, 1.0))
        assert torch.allclose(image, torch.full((B, 5), 5**-0.5, dtype=torch.float64))


def test_what_is_said_of_losses_before_torch_is_loaded_is_what_their_classes_say() -> None:
    assert {name for name, loss in LOSSES.items() if not loss.needs_teacher} == WITHOUT_TEACHER
