"""Views are pure functions of key, index and policy, drawn as torchvision draws them, and packed without loss."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.transforms import RandAugment, RandomResizedCrop

from shards import UserError
from teacher_cache.views import Jitter, Operation, View, ViewPolicy

WIDE = ViewPolicy(scale=(0.1, 0.5), ratio=(0.75, 4 / 3), flip=0.3)
COLOURED = ViewPolicy(flip=0.5, jitter=(0.4, 0.5, 1.5, 0.1), rand_augment=(2, 9))


def test_a_view_depends_on_nothing_but_key_index_and_policy() -> None:
    program = """
import json, sys
from teacher_cache.views import ViewPolicy
policy = ViewPolicy(flip=0.5, jitter=(0.4, 0.5, 1.5, 0.1), rand_augment=(2, 9))
order = range(40) if sys.argv[1] == "up" else reversed(range(40))
views = {n: policy.draw(f"cc3m-{n:09d}", n % 7, 300 + n, 200) for n in order}
print(policy.pack([views[n] for n in range(40)]).tobytes().hex(), "torch" in sys.modules)
"""
    answers = []
    for order, seed in (("up", "1"), ("down", "77")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program, order], env=environment, capture_output=True, text=True, check=True
        )
        answers.append(done.stdout.split())
    here = [COLOURED.draw(f"cc3m-{n:09d}", n % 7, 300 + n, 200) for n in range(40)]
    assert answers[0] == answers[1] == [COLOURED.pack(here).tobytes().hex(), "False"]
    assert len(set(here)) == 40


def test_version_3_draws_what_version_3_always_drew() -> None:
    """Redrawn by hand: ten tries of four numbers from SHA-256. Cached views replay only as long as this holds."""
    policy = ViewPolicy(scale=(0.5, 1.0), ratio=(0.5, 2.0), flip=0.5, jitter=(0.4, 2, 0, 0.5), rand_augment=(1, 20))
    tried = []
    for number in range(30):
        key, width, height = f"yfcc-{number:09d}", 200, 150 - number

        def uniform(purpose: object, key: str = key) -> list[float]:
            digest = hashlib.sha256(f"view\x1f3\x1f{key}\x1f3\x1f{purpose}".encode()).digest()
            return [(value >> 11) / 2**53 for value in struct.unpack("<4Q", digest)]

        view = policy.draw(key, 3, width, height)
        for attempt in range(10):
            area, ratio, x, y = uniform(attempt)
            pixels = width * height * (0.5 + 0.5 * area)
            aspect = 0.5 * 4**ratio
            crop_width, crop_height = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
            if crop_width <= width and crop_height <= height:
                break
        else:
            continue
        tried.append(attempt)
        fractions = (
            x * (1 - crop_width / width),
            y * (1 - crop_height / height),
            crop_width / width,
            crop_height / height,
        )
        assert view[:4] == pytest.approx(fractions, rel=2e-7)
        flip, order = uniform("flip")[:2]
        assert view.flip == (flip < 0.5)
        numbers = uniform("jitter")
        assert view.jitter is not None
        factors = (0.6 + 0.8 * numbers[0], 3 * numbers[1], 1.0, numbers[3] - 0.5)
        assert view.jitter[:4] == pytest.approx(factors, rel=5e-4, abs=1e-7)
        assert view.jitter.order == math.floor(order * 24)
        name, sign = uniform("operations")[:2]
        (operation,) = view.operations
        assert operation.name == list(RandAugment()._augmentation_space(31, (1, 1)))[math.floor(name * 14)]
        if operation.name == "Rotate":
            assert operation.magnitude == (-20 if sign < 0.5 else 20)
    assert max(tried) > 2  # else the tries after the first would go untested


def test_crops_are_exact_float32_and_inside_the_image() -> None:
    for policy in (ViewPolicy(), WIDE, ViewPolicy(scale=(0.01, 1.0), ratio=(0.1, 10.0)), ViewPolicy(kind="centre")):
        for number in range(300):
            view = policy.draw(f"k-{number}", 0, 17 + 13 * (number % 31), 17 + 7 * (number % 57))
            assert all(float(np.float32(value)) == value for value in view[:4])
            assert min(view[:4]) >= 0
            assert min(view.width, view.height) > 0
            assert view.left + view.width <= 1 + 1e-6
            assert view.top + view.height <= 1 + 1e-6


def uniformity(values: npt.NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov: over 1.63 is less likely than 1 %."""
    ordered = np.sort(values)
    steps = np.arange(1, len(values) + 1) / len(values)
    return float(
        max(np.abs(ordered - steps).max(), np.abs(ordered - steps + 1 / len(values)).max()) * len(values) ** 0.5
    )


def test_areas_ratios_positions_and_flips_are_distributed_as_the_policy_says() -> None:
    width, height = 640, 480  # every crop of at most half the area and a ratio of at most 4:3 fits at once
    views = [WIDE.draw(f"cc3m-{n:09d}", k, width, height) for n in range(1500) for k in (0, 1)]
    crops = np.array([view[:4] for view in views])
    area = crops[:, 2] * crops[:, 3]
    ratio = crops[:, 2] * width / (crops[:, 3] * height)
    uniforms = {
        "area": (area - 0.1) / 0.4,
        "ratio": np.log(ratio / 0.75) / np.log((4 / 3) / 0.75),
        "left": crops[:, 0] / (1 - crops[:, 2]),
        "top": crops[:, 1] / (1 - crops[:, 3]),
    }
    for name, values in uniforms.items():
        assert values.min() > -1e-5, name
        assert values.max() < 1 + 1e-5, name
        assert uniformity(values) < 1.63, name
    together = np.corrcoef(np.stack([*uniforms.values(), [view.flip for view in views]]))
    assert np.abs(together - np.eye(5)).max() < 0.06
    pairs = crops.reshape(-1, 2, 4)
    assert abs(np.corrcoef(pairs[:, 0, 0], pairs[:, 1, 0])[0, 1]) < 0.08, "the views of one image are alike"
    assert np.mean([view.flip for view in views]) == pytest.approx(0.3, abs=0.03)
    assert not any(ViewPolicy().draw(f"k{n}", 0, 90, 90).flip for n in range(200))


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (500, 1), (1, 500), (3000, 1500)])
def test_where_no_crop_fits_the_largest_central_one_with_an_allowed_ratio_is_taken(width: int, height: int) -> None:
    view = ViewPolicy(ratio=(0.8, 1.5)).draw("k-1", 0, width, height)
    ratio = 1.5 if width > height else 0.8
    crop = (height * ratio, height) if width > height else (width, width / ratio)
    expected = ((width - crop[0]) / 2 / width, (height - crop[1]) / 2 / height, crop[0] / width, crop[1] / height)
    assert view[:4] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("width", "height"), [(100, 100), (300, 100), (100, 201), (1, 1), (1, 9)])
def test_the_central_policy_takes_the_central_square(width: int, height: int) -> None:
    side = min(width, height)
    expected = ((width - side) / 2 / width, (height - side) / 2 / height, side / width, side / height)
    views = {ViewPolicy(kind="centre").draw(key, index, width, height) for key in "ab" for index in range(3)}
    assert len(views) == 1
    (view,) = views
    assert view[:4] == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert not view.flip


def test_crops_are_distributed_like_torchvision_s() -> None:
    """Of an image which most large crops do not fit, so that retries and the fallback count."""
    width, height, number = 341, 256, 2000
    policy = ViewPolicy(scale=(0.35, 1.0))
    ours = np.array([policy.draw(f"cc12m-{n:09d}", 0, width, height)[:4] for n in range(number)])
    torch.manual_seed(0)
    canvas = torch.empty(3, height, width)
    drawn = [RandomResizedCrop.get_params(canvas, [0.35, 1.0], [3 / 4, 4 / 3]) for _ in range(number)]
    theirs = np.array([(left / width, top / height, w / width, h / height) for top, left, h, w in drawn])
    for column in range(4):
        points = np.linspace(0, 1, 101) + 1e-3  # clear of torchvision's whole pixels
        apart = [(ours[:, column] <= at).mean() - (theirs[:, column] <= at).mean() for at in points]
        assert np.abs(apart).max() < 1.63 * (2 / number) ** 0.5, column


def test_colours_are_distributed_as_the_policy_says() -> None:
    views = [COLOURED.draw(f"cc3m-{n:09d}", k, 640, 480) for n in range(1500) for k in (0, 1)]
    jitters = np.array([view.jitter for view in views])
    for column, (low, high) in enumerate([(0.6, 1.4), (0.5, 1.5), (0.0, 2.5), (-0.1, 0.1)]):
        values = (jitters[:, column] - low) / (high - low)
        assert values.min() > -1e-3  # rounded to float16
        assert values.max() < 1 + 1e-3
        assert uniformity(values) < 1.75, column  # float16 is coarse
    expected = len(views) / 24
    assert np.abs(np.bincount(jitters[:, 4].astype(int), minlength=24) - expected).max() < 4 * expected**0.5
    together = np.corrcoef(np.column_stack([jitters, [view.flip for view in views], [view.left for view in views]]).T)
    assert np.abs(together - np.eye(7)).max() < 0.08
    space = RandAugment()._augmentation_space(31, (1, 1))
    for place in (0, 1):
        operations = [view.operations[place] for view in views]
        for name, (magnitudes, signed) in space.items():
            drawn = np.array([magnitude for drawn, magnitude in operations if drawn == name])
            assert abs(len(drawn) - len(views) / 14) < 4 * (len(views) / 14) ** 0.5, name
            wanted = float(magnitudes[9]) if magnitudes.ndim else 0.0
            assert np.abs(drawn) == pytest.approx(wanted, rel=5e-4), name
            if signed:
                assert abs((drawn > 0).mean() - 0.5) < 4 * 0.5 / len(drawn) ** 0.5, name
    first, second = np.array([[list(space).index(name) for name, _ in view.operations] for view in views]).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.08


@pytest.mark.parametrize("magnitude", [0, 1, 11, 17, 30])
def test_magnitudes_are_torchvision_s(magnitude: int) -> None:
    policy = ViewPolicy(rand_augment=(2, magnitude))
    drawn = {name: value for n in range(100) for name, value in policy.draw(f"k-{n}", 0, 64, 64).operations}
    space = RandAugment()._augmentation_space(31, (1, 1))
    assert drawn.keys() == space.keys()
    for name, (magnitudes, _) in space.items():
        assert abs(drawn[name]) == pytest.approx(float(magnitudes[magnitude]) if magnitudes.ndim else 0.0, rel=5e-4)


def test_a_resized_copy_has_the_same_view() -> None:
    for number in range(50):
        original = np.array(WIDE.draw(f"k-{number}", 0, 640, 480)[:5])
        doubled = np.array(WIDE.draw(f"k-{number}", 0, 1280, 960)[:5])
        assert np.abs(original - doubled).max() < 1e-6


@pytest.mark.parametrize(
    ("policy", "size"),
    [
        (WIDE, 17),
        (ViewPolicy(kind="centre"), 17),
        (ViewPolicy(kind="squash"), 17),
        (ViewPolicy(flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1)), 32),
        (ViewPolicy(rand_augment=(1, 30)), 32),
        (COLOURED, 32),
    ],
)
def test_what_is_packed_is_unpacked_exactly(policy: ViewPolicy, size: int) -> None:
    views = [policy.draw(f"k-{n}", k, 300 + n, 200) for n in range(100) for k in range(2)]
    packed = policy.pack(views)
    assert packed.shape == (200,)
    assert packed.dtype == policy.dtype
    assert policy.dtype.itemsize == size
    again = np.frombuffer(packed.tobytes(), policy.dtype)
    unpacked = [policy.unpack(record) for record in again]
    assert unpacked == views
    assert all(type(view.flip) is bool and type(view.left) is float for view in unpacked)


def test_given_views_are_packed_but_never_drawn() -> None:
    policy = ViewPolicy(kind="given")
    given = [
        View(0.25, 0.5, 0.5, 0.25, True),
        View(0.0, 0.0, 1.0, 1.0, False, Jitter(1.5, 0.5, 0.25, -0.125, 23)),
        View(0.0, 0.0, 1.0, 1.0, False, None, (Operation("Equalize", 0.0), Operation("Rotate", -7.5))),
        View(0.0, 0.0, 1.0, 1.0, False, Jitter(1.0, 1.0, 1.0, 0.0, 0), (Operation("Identity", 0.0),)),
    ]
    assert [policy.unpack(record) for record in policy.pack(given)] == given
    with pytest.raises(AssertionError):
        policy.draw("k-1", 0, 64, 64)
    with pytest.raises(AssertionError):
        policy.pack([given[0]._replace(operations=(Operation("Identity", 0.0),) * 3)])


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.9, 0.5)},
        {"scale": (0.5, 1.5)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"flip": 1.5},
        {"scale": (float("nan"), 1.0)},
        {"jitter": (-0.1, 0.0, 0.0, 0.0)},
        {"jitter": (0.0, 0.0, 0.0, 0.6)},
        {"jitter": (float("nan"), 0.0, 0.0, 0.0)},
        {"rand_augment": (3, 9)},
        {"rand_augment": (0, 9)},
        {"rand_augment": (2, 31)},
        {"rand_augment": (2, 8.5)},
    ],
)
def test_a_policy_that_cannot_be_drawn_is_refused(options: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(UserError, match=r"no views can be drawn|it must be a list of"):
        ViewPolicy(**options)


@pytest.mark.parametrize(
    ("kind", "interpolation"), [("crop", "bilinear"), ("given", "bilinear"), ("centre", "lanczos"), ("crop", "random")]
)
def test_an_interpolation_that_no_view_is_rendered_by_is_refused(kind: str, interpolation: str) -> None:
    with pytest.raises(UserError, match=f"(kind {kind} .*interpolation|interpolation is) '{interpolation}'"):
        ViewPolicy(kind=kind, interpolation=interpolation)


@pytest.mark.parametrize("options", [{"flip": 0.5}, {"jitter": (0.4, 0.4, 0.4, 0.1)}, {"rand_augment": (2, 9)}])
@pytest.mark.parametrize("kind", ["centre", "squash"])
def test_views_for_evaluation_take_no_augmentation(kind: str, options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"kind {kind}"):
        ViewPolicy(kind=kind, **options)


@pytest.mark.parametrize(
    "policy",
    [
        *(WIDE, COLOURED, ViewPolicy(kind="centre"), ViewPolicy(scale=(1 / 3, 2 / 3)), ViewPolicy(kind="given")),
        ViewPolicy(kind="squash", interpolation="bilinear"),
    ],
)
def test_a_policy_survives_json(policy: ViewPolicy) -> None:
    identity = json.loads(json.dumps(policy.identity()))
    assert identity["version"] == 3
    assert ViewPolicy.from_identity(identity) == policy
    assert identity["interpolation"] == policy.interpolation
    with pytest.raises(UserError, match="version 1"):
        ViewPolicy.from_identity({**identity, "version": 1})
