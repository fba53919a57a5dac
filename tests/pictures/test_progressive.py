"""A progressive JPEG at a reduced scale: without the last bits of its brightness, but never without its end."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pictures.jpeg import Jpeg
from pictures.jpeg_header import read_header
from pictures.refusal import RefusedError


def photo(seed: int, side: int = 320, **options: object) -> bytes:
    """Noise of all frequencies, falling with them as in photographs."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((side, side, 3))
    for size in (4, 16, 64, side):
        noise = random.normal(size=(size, size, 3)) * 40 * (4 / size) ** 0.5
        pixels += np.stack(
            [np.asarray(Image.fromarray(noise[:, :, c].astype(np.float32)).resize((side, side))) for c in range(3)], -1
        )
    out = io.BytesIO()
    Image.fromarray(np.clip(128 + pixels, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def scans(body: bytes) -> int:
    """Scans, as Pillow's own parser meets them: every marker between them is followed by its length."""
    return body.count(b"\xff\xda")


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_what_is_left_out_does_not_show(scale: int) -> None:
    for seed in range(4):
        body = photo(seed, progressive=True)
        rough, fine = (Jpeg(body).decode(scale, fine=fine).astype(float) for fine in (False, True))
        # Colours are not interpolated either, which a baseline file of the same picture has too.
        plain = photo(seed)
        beside = [Jpeg(plain).decode(scale, fine=fine).astype(float) for fine in (False, True)]
        assert np.mean((rough - fine) ** 2) < np.mean((beside[0] - beside[1]) ** 2) + 255**2 / 10**4.5
    shorter = read_header(body).without_last_bits(body)
    assert (scans(body), scans(shorter)) == (10, 9)
    assert len(shorter) < 0.8 * len(body)


def test_at_full_scale_and_where_it_is_to_be_fine_nothing_is_left_out() -> None:
    body = photo(1, progressive=True)
    with Image.open(io.BytesIO(body)) as image:
        expected = np.asarray(image)[:, :, ::-1]
    assert np.array_equal(Jpeg(body).decode(1, fine=True), expected)
    with Image.open(io.BytesIO(body)) as image:
        image.draft("RGB", (160, 160))
        assert np.array_equal(Jpeg(body).decode(2, fine=True), np.asarray(image)[:, :, ::-1])


@pytest.mark.parametrize("kept", [0.5, 0.7, 0.9, 0.999])
def test_a_file_that_ends_early_is_still_one(kept: float) -> None:
    """Also where what is missing is a part of the scan that would be left out."""
    body = photo(2, progressive=True)
    with pytest.raises(RefusedError) as refused:
        Jpeg(body[: int(kept * len(body))]).decode(2, fine=False)
    assert refused.value.cause == "truncated"


def test_what_has_no_such_scan_is_read_as_it_is() -> None:
    for body in (photo(3), photo(3, progressive=True)[:-2], b"".join([photo(3)[:-2], b"\xff\xd9tail"])):
        assert read_header(body).without_last_bits(body) == body
    grey = io.BytesIO()
    with Image.open(io.BytesIO(photo(3))) as image:
        image.convert("L").save(grey, "JPEG", progressive=True)
    body = grey.getvalue()
    assert scans(read_header(body).without_last_bits(body)) == scans(body) - 1
    behind = photo(3, progressive=True) + b"\xff\xd8\xff and more"
    assert read_header(behind).without_last_bits(behind).endswith(b"\xff\xd9\xff\xd8\xff and more")
