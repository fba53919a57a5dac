"""The images that are served: made here, from fixed seeds, with the spectrum, edges and sizes of photos."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDES = (192, 400, 800, 1600)
KINDS = ("jpeg", "progressive", "png", "webp", "gif")


def make(folder: Path, *, few: bool = False) -> Path:
    """Make all that is missing; returns the folder inside, which is another when this file changes.

    `photo`: 200 of 800x600, about 142 kB; `progressive`, `png` and `webp`: the same pictures, of the last two the first
    48; `large`: 48 of 2048x1536, about 700 kB; a third of all JPEGs with EXIF. `SIDE_KIND`: 8 pictures each with a
    longer side of SIDE pixels, by `SIDES` and `KINDS`. `heavy`: 4 of 12 megapixels and 5 MB; `hostile`: bodies of 50 MB
    and images of 100 megapixels. With `few` every group is a tenth, and of the hostile ones there are three.
    """
    folder = folder / (hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8] + ("-few" if few else ""))
    photos, some, sides, heavy = (20, 5, 1, 1) if few else (200, 48, 8, 4)
    wanted = [_Wanted(folder, "photo", 800, 600, number) for number in range(photos)]
    wanted += [_Wanted(folder, "progressive", 800, 600, number, "progressive") for number in range(photos)]
    wanted += [_Wanted(folder, kind, 800, 600, number, kind) for kind in ("png", "webp") for number in range(some)]
    wanted += [_Wanted(folder, "large", 2048, 1536, number) for number in range(some)]
    wanted += [
        _Wanted(folder, f"{side}_{kind}", side, side * 3 // 4, number, kind)
        for side in SIDES
        for kind in KINDS
        for number in range(sides)
    ]
    wanted += [_Wanted(folder, "heavy", 4000, 3000, number, "fine") for number in range(heavy)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_photo, wanted))
    for name, make_one in _HOSTILE.items():
        if not few or name in _FEW_HOSTILE:
            _keep(folder / "hostile" / name, make_one)
    return folder


def describe(folder: Path) -> dict[str, dict[str, float]]:
    """How many bodies there are in each group, and their mean size in kB."""
    groups = {group.name: [path.stat().st_size for path in group.iterdir()] for group in sorted(folder.glob("*/"))}
    return {name: {"count": len(sizes), "mean_kb": sum(sizes) / len(sizes) / 1e3} for name, sizes in groups.items()}


def photo(seed: int, width: int, height: int) -> Image.Image:
    """An RGB image like a photo: a 1/f spectrum in brightness and colour, blurred blobs behind sharp-edged things."""
    rng = np.random.default_rng([seed, width])
    # Busy scenes and calm ones.
    brightness = 60 * _one_over_f(rng, height, width, rng.uniform(1.15, 1.6))
    colour = [28 * _one_over_f(rng, height // 4, width // 4, 1.5) for _ in range(2)]
    warm, cold = (np.kron(field, np.ones((4, 4))) for field in colour)
    texture = np.stack([brightness + warm, brightness - 0.5 * (warm + cold), brightness + cold], axis=2)
    scene = _scene(rng, width, height)
    sensor = rng.normal(0, 1.2, (height, width, 1))
    return Image.fromarray(np.clip(0.75 * scene + 0.55 * texture + 25 + sensor, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    return _saved(image, "JPEG", quality=quality)


def _one_over_f(rng: np.random.Generator, height: int, width: int, power: float) -> np.ndarray:
    """A float64 [height, width] field with amplitude 1/f^power, mean 0 and deviation 1."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    shape = frequency.shape
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / frequency**power
    field = np.fft.irfft2(spectrum, (height, width))
    scaled: np.ndarray = field / field.std()
    return scaled


def _scene(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Float64 [height, width, 3]: out-of-focus blobs, and things with edges in front of them."""
    image = Image.new("RGB", (width, height), tuple(int(value) for value in rng.integers(60, 200, 3)))
    for blurred in (True, False):
        draw = ImageDraw.Draw(image)
        for _ in range(9):
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            reach = rng.uniform(0.05, 0.25, 2) * height
            box = [x - reach[0], y - reach[1], x + reach[0], y + reach[1]]
            fill = tuple(int(value) for value in rng.integers(0, 256, 3))
            if rng.random() < 0.5:
                draw.ellipse(box, fill=fill)
            else:
                draw.polygon([(box[0], y), (x, box[1]), (box[2], box[3]), (x, y)], fill=fill)
        image = image.filter(ImageFilter.GaussianBlur(height / 40 if blurred else 0.7))
    return np.asarray(image, np.float64)


def _exif(seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Benchmark", f"Camera {seed % 7}", 1
    exif[0x0132] = f"2024:05:{seed % 28 + 1:02d} 12:00:00"
    exif.get_ifd(0x8769).update({0x829A: 0.008, 0x829D: 2.8, 0x8827: 100, 0x920A: 35.0})
    return exif.tobytes()


@dataclass(frozen=True)
class _Wanted:
    folder: Path
    group: str
    width: int
    height: int
    number: int
    kind: str = "jpeg"


def _write_photo(one: _Wanted) -> None:
    exif = {"exif": _exif(one.number)} if one.number % 3 == 0 else {}
    made: dict[str, tuple[str, dict[str, object]]] = {
        "jpeg": ("JPEG", {"quality": 91, **exif}),
        "fine": ("JPEG", {"quality": 97, **exif}),
        "progressive": ("JPEG", {"quality": 91, "progressive": True, **exif}),
        "png": ("PNG", {}),
        "webp": ("WEBP", {"quality": 85}),
        "gif": ("GIF", {}),
    }
    form, options = made[one.kind]
    path = one.folder / one.group / f"{one.number:04d}.{'jpg' if form == 'JPEG' else form.lower()}"
    _keep(path, lambda: _saved(photo(one.number, one.width, one.height), form, **options))


def _hundred_megapixels(mode: str) -> Image.Image:
    """10,000 x 10,000 pixels, the most that is allowed by default, of tiles that compress well."""
    tile = photo(0, 200, 200).convert(mode)
    image = Image.new(mode, (10_000, 10_000))
    if mode == "P":
        image.putpalette(tile.getpalette() or [])
    for x in range(0, 10_000, 200):
        for y in range(0, 10_000, 2000):
            image.paste(tile, (x, y))
    return image


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _keep(path: Path, make_one: Callable[[], bytes]) -> None:
    """Write a file unless it is there; whole or not at all."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not beside the others: the server serves whatever it finds there.
    partial = path.parents[1] / f"{path.parent.name}-{path.name}.part"
    partial.write_bytes(make_one())
    partial.rename(path)


_HOSTILE: dict[str, Callable[[], bytes]] = {
    "trailing.jpg": lambda: jpeg(photo(0, 800, 600), 90).ljust(50_000_000, b"\0"),
    "noise.bin": lambda: np.random.default_rng(0).bytes(50_000_000),
    "over.bin": lambda: np.random.default_rng(1).bytes(60_000_000),
    "baseline.jpg": lambda: _saved(_hundred_megapixels("RGB"), "JPEG", quality=80),
    "grey.jpg": lambda: _saved(_hundred_megapixels("L"), "JPEG", quality=80),
    "progressive.jpg": lambda: _saved(
        _hundred_megapixels("RGB"), "JPEG", quality=80, progressive=True, subsampling="4:4:4"
    ),
    "colour.png": lambda: _saved(_hundred_megapixels("RGB"), "PNG", compress_level=1),
    "transparent.png": lambda: _saved(_hundred_megapixels("RGBA"), "PNG", compress_level=1),
    "palette.gif": lambda: _saved(_hundred_megapixels("P"), "GIF"),
    "lossless.webp": lambda: _saved(_hundred_megapixels("RGB"), "WEBP", lossless=True, method=0, quality=0),
    "bomb.png": lambda: _saved(Image.new("L", (13_000, 13_000), 9), "PNG", compress_level=1),
}
_FEW_HOSTILE = {"noise.bin", "grey.jpg", "bomb.png"}
