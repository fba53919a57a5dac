"""A view's colours are torchvision's: each operation of RandAugment, and ColorJitter in each order."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter, InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from teacher_cache.views import EncodedImage, Jitter, Operation, View, ViewPolicy

GIVEN = ViewPolicy(kind="given")
WHOLE = View(0.0, 0.0, 1.0, 1.0, False)
SIDE = 48


def picture() -> Image.Image:
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    waves = 120 + 90 * np.sin(rows[..., None] / 6.0 + columns[..., None] / 4.0 + np.arange(3) * 2)
    noise = np.random.default_rng(0).integers(-25, 25, (SIDE, SIDE, 3))
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def rendered(view: View) -> Image.Image:
    sink = io.BytesIO()
    picture().save(sink, "PNG")
    return Image.fromarray(GIVEN.render(EncodedImage(sink.getvalue()), view, SIDE))


SPACE = RandAugment()._augmentation_space(31, (SIDE, SIDE))


@pytest.mark.parametrize("bin", [3, 16, 30])
@pytest.mark.parametrize("name", SPACE)
def test_each_operation_is_randaugment_s(name: str, bin: int) -> None:
    magnitudes, signed = SPACE[name]
    magnitude = float(magnitudes[bin]) if magnitudes.ndim else 0.0
    for sign in (1, -1) if signed else (1,):
        expected = _apply_op(picture(), name, sign * magnitude, InterpolationMode.NEAREST, None)
        relative = sign * magnitude / (SIDE if name.startswith("Translate") else 1)
        got = rendered(WHOLE._replace(operations=(Operation(name, relative),)))
        assert np.array_equal(np.asarray(got), np.asarray(expected))
        if name not in {"Identity", "AutoContrast", "Posterize"} and bin > 3:
            assert not np.array_equal(np.asarray(got), np.asarray(picture()))


def test_operations_apply_in_turn_to_the_mirrored_crop() -> None:
    rotate, solarize = Operation("Rotate", 20.0), Operation("Solarize", 100.0)
    mirrored = picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for operations in ((rotate, solarize), (solarize, rotate)):
        expected = mirrored
        for name, magnitude in operations:
            expected = _apply_op(expected, name, magnitude, InterpolationMode.NEAREST, None)
        got = rendered(WHOLE._replace(flip=True, operations=operations))
        assert np.array_equal(np.asarray(got), np.asarray(expected))


def test_translations_agree_at_every_size() -> None:
    sink = io.BytesIO()
    picture().resize((192, 192)).save(sink, "PNG")
    image = EncodedImage(sink.getvalue())
    view = WHOLE._replace(operations=(Operation("TranslateX", -0.25),))
    for size in (48, 96, 192):
        black = (GIVEN.render(image, view, size) == 0).all(axis=(0, 2))
        assert black.tolist() == [False] * (size * 3 // 4) + [True] * (size // 4)


class Fed(ColorJitter):
    """torchvision's ColorJitter with its draw handed to it."""

    def __init__(self, order: tuple[int, ...], factors: tuple[float | None, ...]) -> None:
        super().__init__()
        self.draw = (torch.tensor(order), *factors)

    def get_params(self, *_: Any) -> Any:
        return self.draw


@pytest.mark.parametrize(
    ("order", "steps"), [(0, (0, 1, 2, 3)), (1, (0, 1, 3, 2)), (8, (1, 2, 0, 3)), (23, (3, 2, 1, 0))]
)
def test_the_jitter_is_colorjitter_s(order: int, steps: tuple[int, ...]) -> None:
    factors = (1.375, 0.625, 1.75, -0.1875)
    got = rendered(WHOLE._replace(jitter=Jitter(*factors, order)))
    assert np.array_equal(np.asarray(got), np.asarray(Fed(steps, factors)(picture())))


def test_strengths_of_nought_change_nothing() -> None:
    got = rendered(WHOLE._replace(jitter=Jitter(1.0, 1.0, 1.0, 0.0, 5)))
    assert np.array_equal(np.asarray(got), np.asarray(picture()))
    some = rendered(WHOLE._replace(jitter=Jitter(1.0, 1.5, 1.0, 0.0, 5)))
    assert np.array_equal(np.asarray(some), np.asarray(Fed((0, 3, 2, 1), (None, 1.5, None, None))(picture())))


def test_the_jitter_comes_before_the_operations() -> None:
    view = WHOLE._replace(jitter=Jitter(0.5, 1.0, 1.0, 0.0, 0), operations=(Operation("Solarize", 60.0),))
    darker = Fed((0, 1, 2, 3), (0.5, None, None, None))(picture())
    expected = _apply_op(darker, "Solarize", 60.0, InterpolationMode.NEAREST, None)
    assert np.array_equal(np.asarray(rendered(view)), np.asarray(expected))
