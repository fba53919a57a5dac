"""`render`: the same bits wherever it runs, the content of the crop, and open_clip's own pixels for evaluation."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

from teacher_cache.views import EncodedImage, View, ViewPolicy

Pixels = npt.NDArray[np.uint8]
WHOLE = View(0.0, 0.0, 1.0, 1.0, False)
POLICIES = [
    ViewPolicy(flip=0.5),
    ViewPolicy(scale=(0.05, 1.0), flip=0.5),
    ViewPolicy(scale=(0.35, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), rand_augment=(2, 9)),
    ViewPolicy(kind="centre"),
    ViewPolicy(kind="squash", interpolation="bilinear"),
]
PLAIN = [policy for policy in POLICIES if not policy.photometric]


@functools.cache
def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Content at all scales, down to single pixels: each octave of detail has 0.7 of the contrast of the one before."""
    random = np.random.default_rng(seed)
    total = np.full((height, width, 3), 128.0)
    for octave in range(1, 9):
        grid = (max(1, height * 2**octave // 256), max(1, width * 2**octave // 256))
        for channel in range(3):
            layer = Image.fromarray(random.normal(size=grid).astype(np.float32))
            total[..., channel] += (
                np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) * 64 * 0.7**octave
            )
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    sink = io.BytesIO()
    usual = {"JPEG": {"quality": 95}, "PNG": {"compress_level": 1}}
    image.save(sink, kind, **usual.get(kind, {}), **options)
    return sink.getvalue()


def turned(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif.tobytes())


def alpha(image: Image.Image) -> Image.Image:
    return Image.merge("RGBA", (*image.split(), image.convert("L")))


def of_every_kind() -> dict[str, bytes]:
    image = photo(150, 113)
    palette = image.quantize(32)
    wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return {
        "jpeg": encode(image),
        "progressive": encode(image, progressive=True),
        "grey": encode(image.convert("L")),
        "cmyk": encode(image.convert("CMYK")),
        "odd": encode(photo(61, 97)),
        "large": encode(photo(701, 533)),
        "large cmyk": encode(photo(403, 333).convert("CMYK")),
        "row": encode(photo(90, 1)),
        "column": encode(photo(1, 90), "PNG"),
        "dot": encode(photo(1, 1), "PNG"),
        "png": encode(image, "PNG"),
        "large png": encode(photo(533, 701), "PNG"),
        "alpha": encode(alpha(image), "PNG"),
        "grey alpha": encode(alpha(image).convert("LA"), "PNG"),
        "palette": encode(palette, "PNG"),
        "clear palette": encode(palette, "PNG", transparency=bytes(range(32))),
        "bits": encode(image.convert("1"), "PNG"),
        "16 bits": encode(Image.fromarray(wide), "PNG"),
        "webp": encode(image, "WEBP"),
        "gif": encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        **{f"turned {turn}": turned(photo(333, 251), turn, "JPEG") for turn in range(1, 9)},
        "turned png": turned(image, 5, "PNG"),
    }


IMAGES = of_every_kind()


def digests(image: EncodedImage, name: str, policies: list[ViewPolicy] = POLICIES) -> list[str]:
    views = [(policy, policy.draw(name, k, image.width, image.height)) for policy in policies for k in range(2)]
    return [
        hashlib.sha256(policy.render(image, view, size).tobytes()).hexdigest()
        for policy, view in views
        for size in (32, 80)
    ]


PROGRAM = """
import hashlib, json, pathlib, sys
from teacher_cache.views import EncodedImage, ViewPolicy
policies = [ViewPolicy.from_identity(identity) for identity in json.loads(sys.argv[2])]
answers = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir(), reverse=True):
    answers[path.name] = rendered = []
    for policy in policies:
        for index in range(2):
            for size in (32, 80):
                image = EncodedImage(path.read_bytes())
                record = policy.pack([policy.draw(path.name, index, image.width, image.height)])[0]
                pixels = policy.render(image, policy.unpack(record), size)
                rendered.append(hashlib.sha256(pixels.tobytes()).hexdigest())
print(json.dumps(["torch" in sys.modules, answers]))
"""


def test_a_view_has_the_same_bits_in_every_process_thread_and_company(tmp_path: Path) -> None:
    """There, without torch: one view to an image, from its packed form, in another order. Here: all of one image, then
    in threads, colours too.
    """
    for name, data in IMAGES.items():
        (tmp_path / name).write_bytes(data)
    policies = json.dumps([policy.identity() for policy in PLAIN])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), policies], capture_output=True, text=True, check=True
    )
    torch_loaded, there = json.loads(done.stdout)
    assert done.stderr == ""
    assert not torch_loaded
    encoded = {name: EncodedImage(data) for name, data in IMAGES.items()}
    assert {name: digests(image, name, PLAIN) for name, image in encoded.items()} == there
    again = {name: digests(image, name) for name, image in encoded.items()}  # from what was decoded before
    fresh = {name: EncodedImage(data) for name, data in IMAGES.items()}
    with ThreadPoolExecutor(4) as pool:  # two at each image
        both = list(pool.map(lambda name: (name, digests(fresh[name], name)), sorted(2 * list(fresh))))
    assert all(answer == again[name] for name, answer in both)
    assert {name: digests(image, name, PLAIN) for name, image in fresh.items()} == there


def ramps(width: int, height: int) -> Image.Image:
    """The column in red, the row in green, each from 0 to 255."""
    across = (np.arange(width) + 0.5) / width * 255
    down = (np.arange(height) + 0.5) / height * 255
    planes = (np.tile(across, (height, 1)), np.tile(down[:, None], (1, width)), np.full((height, width), 128))
    return Image.fromarray(np.stack(planes, axis=2).round().astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(97, 61, 64), (341, 256, 224), (640, 480, 64), (1201, 803, 96), (1601, 1203, 32), (203, 1307, 48), (40, 30, 100)],
)
def test_crops_show_what_they_name(kind: str, width: int, height: int, size: int) -> None:
    """Colours tell where in the picture each pixel comes from."""
    image = EncodedImage(encode(ramps(width, height), kind))
    policy = ViewPolicy(scale=(0.2, 1.0), flip=0.5)
    for index in range(8):
        view = policy.draw("k-1", index, width, height)
        got = policy.render(image, view, size).astype(float)
        got = got[:, ::-1] if view.flip else got
        at = (np.arange(size) + 0.5) / size
        for channel, (start, length, side) in enumerate(
            ((view.left, view.width, width), (view.top, view.height, height))
        ):
            expected = 255 * (start + at * length)
            seen = got[..., channel].mean(axis=channel)
            # Rounding to whole pixels costs half of one, or of those that JPEG was reduced to; at an outermost pixel,
            # and where a large picture is cut to whole blocks, up to half a wanted pixel.
            step = 255 * max(1 / side, length / size)
            assert np.abs(seen - expected).max() < 2 + 0.75 * step
            assert np.abs(seen - expected).mean() < 1 + 0.4 * step


@pytest.mark.parametrize(("orientation", "back"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)])
def test_crops_are_of_the_upright_picture(orientation: int, back: Image.Transpose) -> None:
    upright = ramps(803, 1201)
    image = EncodedImage(turned(upright.transpose(back), orientation, "JPEG"))
    view = ViewPolicy(scale=(0.2, 0.5)).draw("k-1", 0, image.width, image.height)
    assert (image.width, image.height) == (803, 1201)
    # libjpeg's reduced pictures end in a part of a pixel, which a turn may put first.
    apart = ViewPolicy().render(image, view, 64).astype(int) - box_bicubic(encode(upright, "PNG"), view, 64)
    assert np.abs(apart).max() <= 3


def box_bicubic(data: bytes, view: View, size: int) -> Pixels:
    """Antialiased, from the crop's exact edges."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    right, bottom = min(view.left + view.width, 1) * width, min(view.top + view.height, 1) * height
    box = (view.left * width, view.top * height, right, bottom)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))


def psnr(one: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("width", "height", "size"), [(341, 256, 224), (341, 256, 112), (640, 480, 224), (1280, 960, 96), (100, 80, 224)]
)
def test_pixels_are_close_to_an_antialiased_bicubic_resize(kind: str, width: int, height: int, size: int) -> None:
    data = encode(photo(width, height), kind)
    image = EncodedImage(data)
    policy = ViewPolicy(scale=(0.35, 1.0))
    for index in range(3):
        view = policy.draw("k-2", index, width, height)
        got = policy.render(image, view, size)
        assert got.shape == (size, size, 3)
        assert got.dtype == np.uint8
        assert psnr(got, box_bicubic(data, view, size)) > 36


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_noise_is_averaged_over_all_pixels(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 1)).repeat(3, axis=2).astype(np.uint8)
    got = ViewPolicy().render(EncodedImage(encode(Image.fromarray(noise), kind)), WHOLE, 32)
    assert got.mean() == pytest.approx(127.5, abs=1)
    # Over 19 x 25 pixels a deviation of 74 becomes 3.4.
    assert got.std() < 6


def test_a_much_larger_picture_is_cut_alike_on_either_side() -> None:
    columns = np.tile(128 + 120 * np.sin(np.arange(1039) / 30), (1039, 1))
    waves = np.stack([columns, columns.T, columns], axis=2).astype(np.uint8)
    image, other = (EncodedImage(encode(Image.fromarray(pixels), "PNG")) for pixels in (waves, waves[::-1, ::-1]))
    apart = ViewPolicy().render(image, WHOLE, 20).astype(int) - ViewPolicy().render(other, WHOLE, 20)[::-1, ::-1]
    assert np.abs(apart).max() <= 1


def test_half_the_picture_shows_the_same_crops() -> None:
    whole = photo(640, 480)
    image, half = EncodedImage(encode(whole)), EncodedImage(encode(whole.reduce(2)))
    policy = ViewPolicy(scale=(0.3, 1.0))
    views = [policy.draw("k-1", index, 640, 480) for index in range(6)]
    rendered = [policy.render(image, view, 96) for view in views]
    for view, pixels in zip(views, rendered, strict=True):
        assert psnr(policy.render(half, view, 96), pixels) > 35
    assert psnr(rendered[0], rendered[1]) < 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_crop_at_its_own_resolution_is_the_image_itself(kind: str) -> None:
    data = encode(photo(64, 48), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))[16:48, 8:40]
    view = View(8 / 64, 16 / 48, 32 / 64, 32 / 48, False)
    assert np.array_equal(ViewPolicy().render(EncodedImage(data), view, 32), expected)
    mirrored = ViewPolicy(kind="given").render(EncodedImage(data), view._replace(flip=True), 32)
    assert np.array_equal(mirrored, expected[:, ::-1])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (40, 1), (2, 2), (1, 4000), (4000, 1), (3, 2)])
@pytest.mark.parametrize("policy", PLAIN)
def test_images_of_a_pixel_or_two_render(width: int, height: int, policy: ViewPolicy) -> None:
    image = EncodedImage(encode(photo(width, height), "PNG"))
    for index in range(5):
        got = policy.render(image, policy.draw("k-1", index, width, height), 32)
        assert got.shape == (32, 32, 3)
        if width == height == 1:
            assert (got == image.pixels()[0, 0]).all()


def test_what_is_rendered_may_be_written_to() -> None:
    image = EncodedImage(encode(photo(32, 32), "PNG"))
    for policy in POLICIES:
        first = policy.render(image, policy.draw("k-1", 0, 32, 32), 32)
        kept = first.copy()
        first[:] = 0
        assert np.array_equal(policy.render(image, policy.draw("k-1", 0, 32, 32), 32), kept)


def open_clip_s(data: bytes, size: int, mode: str, interpolation: str) -> Pixels:
    """What open_clip's preprocessing for evaluation hands to ToTensor, of the upright picture."""
    chosen = PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation)
    transform: Any = image_transform_v2(chosen, is_train=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow says of palettes with transparency
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        for step in transform.transforms[:-2]:
            image = step(image)
    return np.asarray(image)


@pytest.mark.parametrize("name", sorted(IMAGES.keys() - {"16 bits"}))  # which open_clip turns white
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("kind", "mode"), [("centre", "shortest"), ("squash", "squash")])
def test_views_for_evaluation_are_open_clip_s(name: str, kind: str, mode: str, interpolation: str) -> None:
    data = IMAGES[name]
    policy, image = ViewPolicy(kind=kind, interpolation=interpolation), EncodedImage(data)
    view = policy.draw("k-1", 0, image.width, image.height)
    for size in (32, 133):
        got = policy.render(image, view, size)
        expected = open_clip_s(data, size, mode, interpolation)
        if kind == "centre" and name in {"row", "column"}:
            # Only the middle is resized: whole, longer ribbons would fill the memory.
            assert np.abs(got.astype(int) - expected).max() <= 1
        else:
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("width", range(60, 68))
def test_the_middle_is_rounded_as_open_clip_rounds_it(width: int) -> None:
    for data in (encode(photo(width, 31), "PNG"), encode(photo(31, width), "PNG")):
        for size in (31, 32, 33):
            got = ViewPolicy(kind="centre").render(EncodedImage(data), WHOLE, size)
            assert np.array_equal(got, open_clip_s(data, size, "shortest", "bicubic"))


def test_greys_of_16_bits_do_not_turn_white() -> None:
    images = EncodedImage(IMAGES["16 bits"]), EncodedImage(encode(photo(150, 113).convert("L"), "PNG"))
    for policy in POLICIES:
        view = policy.draw("k-1", 0, 150, 113)
        wide, grey = (policy.render(image, view, 48) for image in images)
        assert np.array_equal(wide, grey)


@pytest.mark.parametrize("policy", POLICIES)
def test_pixels_go_where_they_are_wanted(policy: ViewPolicy) -> None:
    images = np.zeros((3, 40, 40, 3), np.uint8)
    for name in ("jpeg", "large", "turned 6", "png"):
        image = EncodedImage(IMAGES[name])
        for index in range(3):
            view = policy.draw(name, index, image.width, image.height)
            given = policy.render(image, view, 40, images[1])
            assert np.shares_memory(given, images[1])
            assert np.array_equal(images[1], policy.render(image, view, 40))
    assert not images[[0, 2]].any()
