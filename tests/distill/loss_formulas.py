"""The losses in numpy, from their papers' formulas, and derivatives that know nothing of automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Parameters = dict[str, Array]


@dataclass(frozen=True)
class Side:
    """What a student or a teacher makes of a batch: rows of any length, and its scale and bias."""

    raw_image: Array
    raw_text: Array
    scale: float
    bias: float = 0.0

    @property
    def image(self) -> Array:
        return unit(self.raw_image)

    @property
    def text(self) -> Array:
        return unit(self.raw_text)

    @property
    def logits(self) -> Array:
        return self.scale * self.image @ self.text.T


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.real.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def cross_entropy(logits: Array, target: Array) -> float:
    return -(target * np.log(softmax(logits))).sum(axis=-1).mean(axis=-1)


def both_ways(logits: Array, to_text: Array, to_image: Array) -> float:
    return (cross_entropy(logits, to_text) + cross_entropy(logits.T, to_image)) / 2


def contrastive(student: Side) -> float:
    matches = np.eye(len(student.image))
    return both_ways(student.logits, matches, matches)


def affinity(student: Side, teacher: Side) -> float:
    return both_ways(student.logits, softmax(teacher.logits), softmax(teacher.logits.T))


def relational(student: Side, teacher: Side) -> float:
    value = 0.0
    for ours, theirs in ((student.logits, teacher.logits), (student.logits.T, teacher.logits.T)):
        p, q = softmax(theirs), softmax(ours)
        value += (p * np.log(p / q)).sum() / len(p) / 2
    return value


def feature(student: Side, teacher: Side) -> float:
    rows, width = teacher.image.shape
    return (((student.image - teacher.image) ** 2).sum() + ((student.text - teacher.text) ** 2).sum()) / (rows * width)


def slopes(queries: Array, keys: Array, scale: float) -> list[Array]:
    """The gradients of CE(scale·q·kᵀ, I) by q and by k, by complex steps: exact, and no formula of a gradient."""
    step, found = 1e-30, []
    for moved in (0, 1):
        moves = 1j * step * np.eye(queries.size).reshape(-1, *queries.shape)
        q, k = (queries + moves, keys) if moved == 0 else (queries, keys + moves)
        values = cross_entropy(scale * q @ np.swapaxes(k, -1, -2), np.eye(len(queries)))
        found.append((values.imag / step).reshape(queries.shape))
    return found


def slopes_by_hand(queries: Array, keys: Array, scale: float) -> list[Array]:
    """The same by the formula: of large batches complex steps would fill the memory."""
    error = softmax(scale * queries @ keys.T) - np.eye(len(queries))
    return [scale * error @ keys / len(queries), scale * error.T @ queries / len(queries)]


def slopes_of_the_reference(queries: Array, keys: Array, scale: float) -> list[Array]:
    """CLIP-KD's own: it takes the scale for a temperature, in the softmax and in the factor."""
    error = softmax(queries @ keys.T / scale) - np.eye(len(queries))
    by_query = np.einsum("ab,bd->ad", error, keys) / scale / len(queries)
    return [by_query, np.einsum("ab,ad->bd", error, queries) / scale / len(queries)]


def gradient(student: Side, teacher: Side, slopes: Callable[[Array, Array, float], list[Array]]) -> float:
    value = 0.0
    for turn in (1, -1):
        ours = slopes(*(student.image, student.text)[::turn], student.scale)
        theirs = slopes(*(teacher.image, teacher.text)[::turn], teacher.scale)
        value += sum(((s - t) ** 2).mean() for s, t in zip(ours, theirs, strict=True))
    return value


def interactive(student: Side, teacher: Side, scale: float) -> float:
    matches = np.eye(len(student.image))
    to_text = cross_entropy(scale * student.image @ teacher.text.T, matches)
    return (to_text + cross_entropy(scale * student.text @ teacher.image.T, matches)) / 2


def fused(student: Side, teacher: Side, parameters: Parameters, place: int) -> tuple[Array, Array]:
    rows = []
    for tower in ("image", "text"):
        together = np.hstack([getattr(student, tower), getattr(teacher, tower)])
        name = f"fusions.{place}.{tower}"
        rows.append(unit(together @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]))
    return rows[0], rows[1]


def reinforcement(student: Side, teachers: Sequence[Side]) -> float:
    to_text = np.mean([softmax(teacher.logits) for teacher in teachers], axis=0)
    to_image = np.mean([softmax(teacher.logits.T) for teacher in teachers], axis=0)
    return both_ways(student.logits, to_text, to_image)


def sigmoid(student: Side) -> float:
    signs = 2 * np.eye(len(student.image)) - 1
    return np.log(1 + np.exp(-signs * (student.logits + student.bias))).sum() / len(student.image)


def sigmoid_affinity(student: Side, teacher: Side) -> float:
    ours, theirs = (1 / (1 + np.exp(-(side.logits + side.bias))) for side in (student, teacher))
    return -(theirs * np.log(ours) + (1 - theirs) * np.log(1 - ours)).sum() / len(student.image)


def projected(student: Side, parameters: Parameters, place: int) -> Side:
    rows = []
    for tower in ("image", "text"):
        weight = parameters.get(f"projections.{place}.{tower}.weight")
        if weight is None:
            rows.append(getattr(student, tower))
        else:
            bias = parameters[f"projections.{place}.{tower}.bias"]
            rows.append(unit(getattr(student, f"raw_{tower}") @ weight.T + bias))
    return Side(rows[0], rows[1], student.scale, student.bias)


def formula(
    name: str, option: str, student: Side, teachers: Sequence[Side], parameters: Parameters, *, by_hand: bool = False
) -> Any:
    """The loss `name` of a batch, the mean over teachers; `parameters` by the names they have in the loss."""
    if name in ("contrastive", "sigmoid"):
        return contrastive(student) if name == "contrastive" else sigmoid(student)
    if name == "reinforcement":
        return reinforcement(student, teachers)
    values = []
    for place, teacher in enumerate(teachers):
        near = projected(student, parameters, place)
        if name in ("icl", "afd"):
            stored = parameters[f"scales.{place}.logit_scale"]
            scale = stored if option == "reference" else np.exp(stored)
        if name == "gd":
            own = slopes_by_hand if by_hand else slopes
            values.append(gradient(near, teacher, slopes_of_the_reference if option == "reference" else own))
        elif name == "icl":
            values.append(interactive(near, teacher, scale))
        elif name == "afd":
            values.append(contrastive(Side(*fused(near, teacher, parameters, place), scale)))
        elif name == "fd":
            values.append(feature(near, teacher))
        else:
            plain = {"affinity": affinity, "crd": relational, "sigmoid_affinity": sigmoid_affinity}
            values.append(plain[name](student, teacher))
    return np.mean(values)


def differences(
    value: Callable[[dict[str, Array]], float], at: dict[str, Array], step: float = 2e-4
) -> dict[str, Array]:
    """The gradient of `value` by each array of `at`, by central differences of fourth order."""
    found = {}
    for name, array in at.items():
        found[name] = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                moved = array.copy()
                moved[index] += steps * step
                found[name][index] += weight * value({**at, name: moved}) / (12 * step)
    return found


def slope_along(value: Callable[[dict[str, Array]], Any], at: dict[str, Array], name: str, way: Array) -> float:
    """The derivative of `value` as the array `name` of `at` moves along `way`, of length 1."""
    # Of eighth order, so that steps may be long enough for rounding not to matter.
    step, found = 2e-3 * np.linalg.norm(at[name]), 0.0
    for steps, weight in ((1, 672), (2, -168), (3, 32), (4, -3)):
        for sign in (1, -1):
            found += sign * weight * value({**at, name: at[name] + sign * steps * step * way}) / (840 * step)
    return found
