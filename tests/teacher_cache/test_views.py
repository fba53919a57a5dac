"""Views are pure functions of key and index, and `render` is a plain antialiased bicubic resize of their crops."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from shards import UserError
from teacher_cache.views import View, ViewPolicy, decode, draw_view, render

Pixels = npt.NDArray[np.uint8]
WIDE = ViewPolicy(scale=(0.1, 0.5), ratio=(0.75, 4 / 3), flip=0.3)


def picture(width: int, height: int, seed: int = 0) -> Pixels:
    """Smooth in places and rough in others."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (height, width, 3))
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 127 + 120 * np.sin(rows[..., None] / 5.0 + columns[..., None] / 9.0 + np.arange(3))
    return np.where((columns > width // 2)[..., None], noise, smooth).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


# ---------------------------------------------------------------------------------------------------------- drawing


def test_a_view_depends_on_nothing_but_key_index_and_policy() -> None:
    program = """
import json, sys
from teacher_cache.views import ViewPolicy, draw_view
policy = ViewPolicy(scale=(0.1, 0.5), ratio=(0.75, 4 / 3), flip=0.3)
order = range(40) if sys.argv[1] == "up" else reversed(range(40))
views = {n: draw_view(policy, f"cc3m-{n:09d}", n % 7, 300 + n, 200) for n in order}
print(json.dumps([views[n] for n in range(40)]))
"""
    answers = []
    for order, seed in (("up", "1"), ("down", "77")):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", program, order], env=environment, capture_output=True, text=True, check=True
        )
        answers.append([View(*view) for view in json.loads(done.stdout)])
    here = [draw_view(WIDE, f"cc3m-{n:09d}", n % 7, 300 + n, 200) for n in range(40)]
    assert answers[0] == answers[1] == here
    assert len(set(here)) == 40


def test_version_1_draws_what_version_1_always_drew() -> None:
    """Redrawn by hand: ten tries of four numbers from SHA-256. Cached crops replay only as long as this holds."""
    policy = ViewPolicy(scale=(0.5, 1.0), ratio=(0.5, 2.0), flip=0.5)
    tried = []
    for number in range(30):
        key, width, height = f"yfcc-{number:09d}", 200, 150 - number

        def uniform(attempt: int, key: str = key) -> tuple[float, ...]:
            digest = hashlib.sha256(f"view\x1f1\x1f{key}\x1f3\x1f{attempt}".encode()).digest()
            return tuple(value / 2**64 for value in struct.unpack("<4Q", digest))

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
        view = draw_view(policy, key, 3, width, height)
        assert view[:4] == pytest.approx(fractions, rel=2e-7)
        assert view.flip == (uniform(-1)[0] < 0.5)
    assert max(tried) > 2  # else the tries after the first would go untested


def test_crops_are_exact_float32_and_inside_the_image() -> None:
    for policy in (ViewPolicy(), WIDE, ViewPolicy(scale=(0.01, 1.0), ratio=(0.1, 10.0)), ViewPolicy(kind="centre")):
        for number in range(300):
            view = draw_view(policy, f"k-{number}", 0, 17 + 13 * (number % 31), 17 + 7 * (number % 57))
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
    views = [draw_view(WIDE, f"cc3m-{n:09d}", k, width, height) for n in range(1500) for k in (0, 1)]
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
    assert not any(draw_view(ViewPolicy(), f"k{n}", 0, 90, 90).flip for n in range(200))


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (500, 1), (1, 500), (3000, 1500)])
def test_where_no_crop_fits_the_largest_central_one_with_an_allowed_ratio_is_taken(width: int, height: int) -> None:
    view = draw_view(ViewPolicy(ratio=(0.8, 1.5)), "k-1", 0, width, height)
    ratio = 1.5 if width > height else 0.8
    crop = (height * ratio, height) if width > height else (width, width / ratio)
    expected = ((width - crop[0]) / 2 / width, (height - crop[1]) / 2 / height, crop[0] / width, crop[1] / height)
    assert view[:4] == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("width", "height"), [(100, 100), (300, 100), (100, 201), (1, 1), (1, 9)])
def test_the_central_policy_takes_the_central_square(width: int, height: int) -> None:
    side = min(width, height)
    expected = ((width - side) / 2 / width, (height - side) / 2 / height, side / width, side / height)
    views = {draw_view(ViewPolicy(kind="centre"), key, index, width, height) for key in "ab" for index in range(3)}
    assert len(views) == 1
    (view,) = views
    assert view[:4] == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert not view.flip


def test_a_resized_copy_shows_the_same_crop() -> None:
    for number in range(50):
        key = f"k-{number}"
        original = np.array(draw_view(ViewPolicy(), key, 0, 640, 480)[:4])
        doubled = np.array(draw_view(ViewPolicy(), key, 0, 1280, 960)[:4])
        assert np.abs(original - doubled).max() < 1e-6
    image = Image.fromarray(picture(320, 240))
    view = draw_view(ViewPolicy(), "k-1", 0, 320, 240)
    for size in ((640, 480), (257, 193)):  # the second is not quite the same shape
        copy = image.resize(size, Image.Resampling.BICUBIC)
        apart = render(image, view, 32).astype(int) - render(copy, view, 32).astype(int)
        assert np.abs(apart).mean() < 4
    other = render(image, draw_view(ViewPolicy(), "k-2", 0, 320, 240), 32).astype(int)
    assert np.abs(render(image, view, 32).astype(int) - other).mean() > 8


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
    ],
)
def test_a_policy_that_cannot_be_drawn_is_refused(options: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(UserError, match="no views can be drawn"):
        ViewPolicy(**options)


def test_a_policy_survives_json() -> None:
    for policy in (WIDE, ViewPolicy(kind="centre"), ViewPolicy(scale=(1 / 3, 2 / 3))):
        assert ViewPolicy.from_identity(json.loads(json.dumps(policy.identity()))) == policy


# -------------------------------------------------------------------------------------------------------- rendering


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel with a = -0.5, as PIL and antialiasing torchvision use."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resampling(length: int, start: float, stop: float, size: int) -> npt.NDArray[np.float64]:
    """(size, length): each output is a kernel-weighted mean of the inputs around it, the kernel widened to shrink."""
    step = (stop - start) / size
    widening = max(step, 1.0)
    centres = start + (np.arange(size) + 0.5) * step
    weights = cubic((np.arange(length)[None] + 0.5 - centres[:, None]) / widening)
    return weights / weights.sum(axis=1, keepdims=True)


def plain_render(pixels: Pixels, view: View, size: int) -> npt.NDArray[np.float64]:
    """Both directions in float64. Of pixels whose contrast is low enough that nothing overshoots a byte."""
    height, width, _ = pixels.shape
    across = resampling(width, view.left * width, min((view.left + view.width) * width, width), size)
    down = resampling(height, view.top * height, min((view.top + view.height) * height, height), size)
    return np.einsum("oh,pw,hwc->opc", down, across, pixels.astype(np.float64), optimize=True)


@pytest.mark.parametrize(("width", "height"), [(97, 61), (40, 200), (33, 32), (260, 190), (16, 12)])
def test_render_is_antialiased_bicubic_of_the_exact_crop(width: int, height: int) -> None:
    pixels = picture(width, height, seed=width) // 2 + 64
    image = Image.fromarray(pixels)
    for index in range(4):
        view = draw_view(ViewPolicy(scale=(0.2, 1.0)), "k-3", index, width, height)
        got = render(image, view, 32)
        assert got.shape == (32, 32, 3)
        assert got.dtype == np.uint8
        # PIL rounds to bytes twice, after each direction.
        assert np.abs(got - plain_render(pixels, view, 32)).max() < 1.5


def test_render_agrees_with_torchvision() -> None:
    pixels = picture(96, 64)
    image = Image.fromarray(pixels)
    whole = View(0.0, 0.0, 1.0, 1.0, False)
    resized = tv.resize(image, [32, 32], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    assert np.array_equal(render(image, whole, 32), np.asarray(resized))
    # A crop at whole pixels: torchvision cuts first, so its outermost pixels do not see beyond the edge.
    crop = View(16 / 96, 8 / 64, 64 / 96, 48 / 64, False)
    cut = tv.resized_crop(
        torch.from_numpy(pixels).permute(2, 0, 1).float(),
        top=8,
        left=16,
        height=48,
        width=64,
        size=[24, 24],
        interpolation=tv.InterpolationMode.BICUBIC,
        antialias=True,
    )
    expected = cut.clamp(0, 255).permute(1, 2, 0).numpy()
    apart = np.abs(render(image, crop, 24) - expected)
    assert apart[3:-3, 3:-3].max() <= 2
    assert apart.mean() < 1


def test_a_crop_at_its_own_resolution_is_the_image_itself() -> None:
    pixels = picture(64, 48)
    view = View(8 / 64, 16 / 48, 32 / 64, 32 / 48, False)
    assert np.array_equal(render(Image.fromarray(pixels), view, 32), pixels[16:48, 8:40])


def test_flip_mirrors() -> None:
    image = Image.fromarray(picture(70, 50))
    view = draw_view(ViewPolicy(), "k-5", 0, 70, 50)
    assert np.array_equal(render(image, view._replace(flip=True), 32), render(image, view, 32)[:, ::-1])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (40, 1), (2, 2), (1, 4000), (4000, 1), (3, 2)])
def test_images_of_a_pixel_or_two_render(width: int, height: int) -> None:
    pixels = picture(width, height)
    image = decode(encode(Image.fromarray(pixels)))
    assert image.size == (width, height)
    for policy in (ViewPolicy(flip=0.5), ViewPolicy(kind="centre"), ViewPolicy(scale=(0.01, 0.1))):
        for index in range(5):
            view = draw_view(policy, "k-1", index, width, height)
            got = render(image, view, 32)
            assert got.shape == (32, 32, 3)
            if width == height == 1:
                assert (got == pixels[0, 0]).all()


# --------------------------------------------------------------------------------------------------------- decoding

UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_images_are_turned_upright(orientation: int, kind: str) -> None:
    pixels = picture(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    plain = np.asarray(decode(encode(image, kind)))
    got = np.asarray(decode(encode(image, kind, exif=exif.tobytes())))
    assert np.array_equal(got, UPRIGHT[orientation](plain))


def test_greyscale_alpha_and_palette_become_rgb() -> None:
    pixels = picture(20, 10)
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(np.asarray(decode(encode(image.convert("L")))), np.stack([grey] * 3, axis=2))
    assert np.array_equal(np.asarray(decode(encode(image.convert("RGBA")))), pixels)
    palette = image.quantize(16)
    colours = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    assert np.array_equal(np.asarray(decode(encode(palette))), colours)
    see_through = encode(palette, transparency=bytes(range(16)))
    assert np.array_equal(np.asarray(decode(see_through)), colours)
    black = np.asarray(decode(encode(image.convert("1"))))
    assert set(np.unique(black)) == {0, 255}


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def test_whatever_is_wrong_with_an_image_is_one_kind_of_error() -> None:
    photo = encode(Image.fromarray(picture(60, 40)), "JPEG")
    lossless = encode(Image.fromarray(picture(60, 40)))
    damaged = {
        "empty": b"",
        "text": b"<html>404</html>",
        "cut JPEG": photo[: len(photo) // 2],
        "cut PNG": lossless[: len(lossless) // 2],
        "cut header": lossless[:20],
        "flipped PNG": lossless[:60] + bytes([lossless[60] ^ 0xFF]) + lossless[61:],
        "bomb": png_claiming(40000, 40000),
        "bad EXIF": photo[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + photo[2:-700],
    }
    for name, data in damaged.items():
        with pytest.raises(OSError, match=r"."):  # noqa: PT012 - says which one
            decode(data)
            pytest.fail(f"{name} decoded")
