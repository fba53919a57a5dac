"""`EncodedImage`: upright RGB pixels of every kind of image, decoded once a scale, and one kind of error."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from teacher_cache.views import EncodedImage

Pixels = npt.NDArray[np.uint8]


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
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_images_are_turned_upright(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(picture(24, 16))
    plain = EncodedImage(encode(image, kind)).pixels()
    turned = EncodedImage(encode(image, kind, exif=exif.tobytes()))
    expected = UPRIGHT[orientation](plain)
    assert (turned.height, turned.width) == expected.shape[:2]
    assert np.array_equal(turned.pixels(), expected)
    assert np.array_equal(np.asarray(turned.picture()), expected)


def test_a_png_is_turned_even_if_its_exif_stands_behind_its_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = picture(24, 16)
    plain = encode(Image.fromarray(pixels))
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    image = EncodedImage(plain[:-12] + chunk(b"eXIf", body) + plain[-12:])
    assert (image.width, image.height) == (16, 24)
    assert np.array_equal(image.pixels(), UPRIGHT[6](pixels))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_jpegs_decode_at_a_reduced_scale(mode: str, orientation: int, scale: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Where a turn puts the cut blocks first, nothing but they may be there.
    size = (501, 333) if orientation == 1 else (504, 336)
    smooth = Image.fromarray(picture(61, 45)[:, :25]).resize(size, Image.Resampling.BICUBIC)
    image = EncodedImage(encode(smooth.convert(mode), "JPEG", quality=95, exif=exif.tobytes()))
    assert image.reducible
    got, whole = image.pixels(scale), Image.fromarray(image.pixels())
    assert got.shape == (-(-image.height // scale), -(-image.width // scale), 3)
    # Averages over blocks, but for the last ones, which are cut.
    expected = np.asarray(whole.reduce(scale)).astype(float)
    assert np.abs(got - expected)[:-1, :-1].mean() < 3


def test_greyscale_alpha_and_palette_become_rgb() -> None:
    pixels = picture(20, 10)
    image = Image.fromarray(pixels)

    def decoded(image: Image.Image, kind: str = "PNG", **options: object) -> Pixels:
        return EncodedImage(encode(image, kind, **options)).pixels()

    grey = np.asarray(image.convert("L"))
    assert np.array_equal(decoded(image.convert("L")), np.stack([grey] * 3, axis=2))
    see_through = image.copy()
    see_through.putalpha(Image.fromarray(grey))
    assert np.array_equal(decoded(see_through), pixels)
    palette = image.quantize(16)
    colours = np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    assert np.array_equal(decoded(palette), colours)
    assert np.array_equal(decoded(palette, transparency=bytes(range(16))), colours)
    assert np.array_equal(decoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]), colours)
    assert set(np.unique(decoded(image.convert("1")))) == {0, 255}
    assert np.array_equal(decoded(image, "WEBP", lossless=True), pixels)


def test_greys_of_16_bits_stay_grey() -> None:
    wide = np.linspace(0, 65535, 40 * 30).astype(np.uint16).reshape(30, 40)
    image = EncodedImage(encode(Image.fromarray(wide)))
    for got in (image.pixels(), np.asarray(image.picture().convert("RGB"))):
        assert np.array_equal(got, np.stack([(wide >> 8).astype(np.uint8)] * 3, axis=2))


def test_a_scale_is_decoded_once() -> None:
    image = EncodedImage(encode(Image.fromarray(picture(400, 300)), "JPEG"))
    assert image.pixels(2) is image.pixels(2)
    assert image.pixels() is image.pixels()
    assert image.picture() is image.picture()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


PHOTO = encode(Image.fromarray(picture(60, 40)), "JPEG")
PROGRESSIVE = encode(Image.fromarray(picture(60, 40)), "JPEG", progressive=True)
LOSSLESS = encode(Image.fromarray(picture(60, 40)))
NO_IMAGES = {
    "empty": b"",
    "text": b"<html>404</html>",
    "cut header": LOSSLESS[:20],
    "bomb": png_claiming(40000, 40000),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
}
DAMAGED = {
    "cut JPEG": PHOTO[: len(PHOTO) // 2],
    "closed JPEG": PHOTO[: len(PHOTO) // 2] + b"\xff\xd9",
    "cut progressive JPEG": PROGRESSIVE[: len(PROGRESSIVE) // 2],
    "cut CMYK": encode(Image.fromarray(picture(60, 40)).convert("CMYK"), "JPEG")[:-900],
    "cut PNG": LOSSLESS[: len(LOSSLESS) // 2],
    "flipped PNG": LOSSLESS[:60] + bytes([LOSSLESS[60] ^ 0xFF]) + LOSSLESS[61:],
    "bad EXIF": PHOTO[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + PHOTO[2:-700],
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_refused_at_once(name: str) -> None:
    with pytest.raises(OSError, match=r"."):
        EncodedImage(NO_IMAGES[name])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_found_when_pixels_are_wanted(name: str) -> None:
    image = EncodedImage(DAMAGED[name])
    assert (image.width, image.height) == (60, 40)
    for scale in (1, 2) if image.reducible else (1,):
        with pytest.raises(OSError, match=r"."):
            image.pixels(scale)
    with pytest.raises(OSError, match=r"."):
        image.picture()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_garbage_where_exif_should_be_does_no_harm() -> None:
    odd = EncodedImage(PHOTO[:2] + b"\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff" + PHOTO[2:])
    assert np.array_equal(odd.pixels(), EncodedImage(PHOTO).pixels())


def jpegs() -> dict[str, bytes]:
    """JPEGs that a glance at their segments is enough for, and others that Pillow has to look at."""
    image = Image.fromarray(picture(61, 45))
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = encode(image, "JPEG")
    more = io.BytesIO()
    image.save(more, "MPO", save_all=True, append_images=[image.rotate(90)])
    return {
        "plain": plain,
        "grey": encode(image.convert("L"), "JPEG"),
        "progressive": encode(image, "JPEG", progressive=True),
        "restarts": encode(image, "JPEG", restart_marker_rows=1),
        "commented": encode(image, "JPEG", comment=b"\xff\xda a comment like a scan"),
        "profile": encode(image, "JPEG", icc_profile=b"\xff\xc0" * 40_000),
        "colours as they are": encode(image, "JPEG", keep_rgb=True),
        "cmyk": encode(image.convert("CMYK"), "JPEG"),
        "turned": encode(image, "JPEG", exif=turned.tobytes()),
        "turned, by xmp": encode(image, "JPEG", xmp=b'<x tiff:Orientation="3"/>'),
        "two pictures": more.getvalue(),
        "padded": plain[:2] + b"\xff" + plain[2:],
        "trailing": plain + b"\xff\xd8 more",
    }


@pytest.mark.parametrize("name", list(jpegs()))
def test_what_a_glance_at_a_jpeg_tells_is_what_pillow_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpegs()[name]
    quick = EncodedImage(data)
    monkeypatch.setattr("teacher_cache.views.encoded._plain_jpeg", lambda _: None)
    slow = EncodedImage(data)
    assert (quick.width, quick.height, quick.reducible) == (slow.width, slow.height, slow.reducible)
    for scale in (1, 2):
        assert np.array_equal(quick.pixels(scale), slow.pixels(scale))
    assert np.array_equal(np.asarray(quick.picture()), np.asarray(slow.picture()))


def test_a_plain_jpeg_is_opened_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    data = jpegs()
    monkeypatch.setattr(Image, "open", never)
    for name in ("plain", "grey", "progressive", "restarts", "commented", "profile"):
        assert (EncodedImage(data[name]).width, EncodedImage(data[name]).height) == (61, 45)


@pytest.mark.parametrize("end", [0, 1, 2, 3, 5, 10, 20, 100, 160, 170, 400, 600])
def test_a_jpeg_cut_in_its_header_is_refused_or_found_damaged(end: int) -> None:
    with pytest.raises(OSError, match=r".+"):
        EncodedImage(jpegs()["plain"][:end]).pixels()
