"""How near the cheaper way comes to the best one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from ingest import ImageSettings
from ingest.images import ImageProcessor


def natural(width: int, height: int, seed: int) -> Image.Image:
    """Soft shapes with edges and a texture whose power falls with the square of frequency, as photos' does."""
    rng = np.random.default_rng(seed)
    across, down = np.fft.rfftfreq(width), np.fft.fftfreq(height)
    spectrum = 1 / np.maximum(np.hypot(across, down[:, None]), 1 / width) ** 1.5
    waves = rng.normal(size=(3, *spectrum.shape)) + 1j * rng.normal(size=(3, *spectrum.shape))
    texture = np.fft.irfft2(waves * spectrum, s=(height, width))
    grey = texture.mean(axis=0)
    texture = 0.3 * texture + grey
    picture = 120 + 45 * texture / texture.std()
    y, x = np.mgrid[:height, :width]
    for _ in range(6):
        inside = np.hypot(x - rng.integers(width), y - rng.integers(height)) < rng.integers(20, height // 3)
        picture[:, inside] += rng.normal(0, 30, (3, 1))
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize(("width", "height", "size"), [(533, 400, 256), (800, 600, 256), (1600, 1200, 128)])
def test_the_cheaper_way_is_near_to_a_full_decode_and_lanczos(width: int, height: int, size: int) -> None:
    """PNG is stored, so that only decoding and resizing count. Peak signal-to-noise ratios in dB."""
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(4):
        sink = io.BytesIO()
        natural(width, height, seed).save(sink, "JPEG", quality=90)
        body = sink.getvalue()
        goal = Image.open(io.BytesIO(body)).resize((size, size * height // width), Image.Resampling.LANCZOS)
        for exact, found in ratios.items():
            settings = ImageSettings(size=size, resize_mode="keep_ratio_largest", format="png", quality=1, exact=exact)
            got = ImageProcessor(settings).process(body)
            assert got.image is not None
            error = np.asarray(Image.open(io.BytesIO(got.image))) - np.asarray(goal).astype(float)
            found.append(10 * np.log10(255**2 / np.mean(error**2)))
    assert np.mean(ratios[False]) >= 40
    # img2dataset's way is no nearer, give or take what nobody sees.
    assert np.mean(ratios[False]) >= np.mean(ratios[True]) - 1.5
