"""What becomes of images of every kind: upright, in their colours, at their size, or refused with a cause."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest import ImageSettings, IngestSettings, SourceSettings
from ingest.img2dataset_engine import Img2datasetEngine
from ingest.ledger import CAUSES, Fetched, classify

RED, GREEN, BLUE, GREY, WHITE = (200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90), (255, 255, 255)
UPRIGHT = [RED, GREEN, BLUE, GREY]


def quarters(height: int = 60, width: int = 80) -> Image.Image:
    """Red and green above, blue and grey below."""
    pixels = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8)
    return Image.fromarray(pixels.repeat(height // 2, axis=0).repeat(width // 2, axis=1))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **({"quality": 95} if kind in {"JPEG", "WEBP", "AVIF"} else {}), **options)
    return sink.getvalue()


def png(image: Image.Image, *, depth: int, key: tuple[int, ...] | None = None) -> bytes:
    """A PNG as Pillow will not write it: `depth` bits a colour, `key` the colour that is transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = np.asarray(image)
    wide = (pixels.astype(">u2") * 257) if depth == 16 else pixels
    colour = {2: 0, 3: 2}[pixels.ndim]
    header = struct.pack(">IIBBBBB", image.width, image.height, depth, colour, 0, 0, 0)
    transparent = b"" if key is None else chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in key))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in wide))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + transparent + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def turned(orientation: int) -> bytes:
    """The picture as a camera held otherwise stores it, with the note that puts it right."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(quarters().transpose(undo[orientation]), "JPEG", exif=exif)


def see_through() -> Image.Image:
    """The red quarter is transparent."""
    image = quarters().convert("RGBA")
    alpha = np.full((60, 80), 255, np.uint8)
    alpha[:30, :40] = 0
    image.putalpha(Image.fromarray(alpha))
    return image


LIGHT = [(round(0.299 * r + 0.587 * g + 0.114 * b),) * 3 for r, g, b in UPRIGHT]
"""The colours' luma, ITU-R BT.601."""

GOOD: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "jpeg": (encode(quarters(), "JPEG"), UPRIGHT),
    "progressive jpeg": (encode(quarters(), "JPEG", progressive=True), UPRIGHT),
    "grey jpeg": (encode(quarters().convert("L"), "JPEG"), LIGHT),
    "cmyk jpeg": (encode(quarters().convert("CMYK"), "JPEG"), UPRIGHT),
    "mpo": (encode(quarters(), "MPO", save_all=True, append_images=[quarters().rotate(180)]), UPRIGHT),
    **{f"jpeg orientation {number}": (turned(number), UPRIGHT) for number in range(2, 9)},
    "jpeg orientation 99": (
        encode(quarters(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0c\0\0\0" + bytes(4)),
        UPRIGHT,
    ),
    "jpeg with garbage for exif": (encode(quarters(), "JPEG", exif=b"Exif\0\0garbage, garbage"), UPRIGHT),
    "png": (encode(quarters(), "PNG"), UPRIGHT),
    "palette png": (encode(quarters().quantize(8), "PNG"), UPRIGHT),
    "palette png with transparency": (
        encode(quarters().quantize(8), "PNG", transparency=quarters().quantize(8).getpixel((0, 0))),
        [WHITE, GREEN, BLUE, GREY],
    ),
    "png with alpha": (encode(see_through(), "PNG"), [WHITE, GREEN, BLUE, GREY]),
    "grey png with alpha": (encode(see_through().convert("LA"), "PNG"), [WHITE, *LIGHT[1:]]),
    "16-bit png": (png(quarters(), depth=16), UPRIGHT),
    "16-bit grey png": (png(quarters().convert("L"), depth=16), LIGHT),
    "png with a transparent colour": (png(quarters(), depth=8, key=RED), [WHITE, GREEN, BLUE, GREY]),
    "grey png with a transparent grey": (png(quarters().convert("L"), depth=8, key=LIGHT[0][:1]), [WHITE, *LIGHT[1:]]),
    "one-bit png": (
        encode(Image.fromarray(np.asarray(quarters())[:, :, 1] > 100), "PNG"),
        [(0,) * 3, WHITE, (0,) * 3, (0,) * 3],
    ),
    "animated png": (encode(quarters(), "PNG", save_all=True, append_images=[quarters().rotate(180)]), UPRIGHT),
    "gif": (encode(quarters(), "GIF"), UPRIGHT),
    "animated gif": (encode(quarters(), "GIF", save_all=True, append_images=[quarters().rotate(180)]), UPRIGHT),
    "webp": (encode(quarters(), "WEBP"), UPRIGHT),
    "webp with alpha": (encode(see_through(), "WEBP", lossless=True), [WHITE, GREEN, BLUE, GREY]),
    "animated webp": (
        encode(quarters(), "WEBP", lossless=True, save_all=True, append_images=[quarters().rotate(180)]),
        UPRIGHT,
    ),
    "bmp": (encode(quarters(), "BMP"), UPRIGHT),
    "tiff": (encode(quarters(), "TIFF"), UPRIGHT),
    "cmyk tiff": (encode(quarters().convert("CMYK"), "TIFF"), UPRIGHT),
}

noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
LARGE = quarters(1000, 1202)

BAD: dict[str, tuple[bytes, str]] = {
    "truncated jpeg": (encode(noise, "JPEG")[:-4000], "truncated"),
    "truncated progressive jpeg": (encode(noise, "JPEG", progressive=True)[:-4000], "truncated"),
    "truncated png": (encode(noise, "PNG")[:-4000], "truncated"),
    "truncated gif": (encode(noise, "GIF")[:-4000], "truncated"),
    "empty": (b"", "not_an_image"),
    "html": (b"<!DOCTYPE html><html><body>Gone</body></html>", "not_an_image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not_an_image"),
    "only a header": (encode(noise, "JPEG")[:100], "not_an_image"),
    "postscript": (encode(quarters(), "EPS"), "not_an_image"),
    "a format the web has no use for": (encode(quarters(), "PCX"), "not_an_image"),
    "pdf": (encode(quarters(), "PDF"), "not_an_image"),
    "too many bytes": (encode(quarters(), "JPEG") + bytes(200_000), "too_large"),
    "too many pixels": (encode(LARGE, "PNG"), "bomb"),
    "far too many pixels": (encode(Image.new("1", (20_000, 20_000)), "PNG"), "bomb"),
}


@pytest.fixture(scope="module")
def fetched(site: Any) -> dict[str, Fetched]:
    """What came of every image above, fetched at once."""
    names = [*GOOD, *BAD]
    bodies = [body for body, _ in [*GOOD.values(), *BAD.values()]]
    urls = [site.add(str(number), body) for number, body in enumerate(bodies)]
    image = ImageSettings(size=40, max_bytes=200_000, max_pixels=1_000_000)
    engine = Img2datasetEngine(IngestSettings(source=SourceSettings(paths=()), out="", name="x", image=image))
    return dict(zip(names, engine.fetch(urls), strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_good_images_are_upright_and_in_their_colours(fetched: dict[str, Fetched], name: str) -> None:
    body, colours = GOOD[name]
    got = fetched[name]
    assert (got.status, got.error_class, got.error_message) == ("success", None, None)
    assert got.image is not None
    image = Image.open(io.BytesIO(got.image))
    assert image.format == "JPEG"
    assert image.size == (got.width, got.height)
    # The shorter side became 40, and the sizes are those of the upright picture.
    assert (got.width, got.height) == (53, 40)
    assert (got.original_width, got.original_height) == (80, 60)
    assert got.sha256 == hashlib.sha256(body).hexdigest()
    pixels = np.asarray(image.convert("RGB")).astype(int)
    quarter = [pixels[3:17, 3:23], pixels[3:17, 30:50], pixels[23:37, 3:23], pixels[23:37, 30:50]]
    for part, colour in zip(quarter, colours, strict=True):
        assert np.abs(part.mean(axis=(0, 1)) - colour).max() < 10
        assert np.abs(part - part.mean(axis=(0, 1))).max() < 40


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_their_cause(fetched: dict[str, Fetched], name: str) -> None:
    got = fetched[name]
    assert (got.image, got.error_class, got.status) == (None, BAD[name][1], "failed_to_resize")
    assert got.error_message
    assert "\n" not in got.error_message
    # An address in memory would make the ledger differ from run to run.
    assert " at 0x" not in got.error_message


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("keep_ratio", (80, 60), (53, 40)),
        ("keep_ratio", (30, 20), (30, 20)),
        ("keep_ratio_largest", (80, 60), (40, 30)),
        ("center_crop", (80, 60), (40, 40)),
        ("border", (80, 60), (40, 40)),
        ("no", (80, 60), (80, 60)),
    ],
)
def test_resize_modes(site: Any, mode: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    url = site.add(f"{mode}-{size[0]}", encode(quarters(size[1], size[0]), "PNG"))
    settings = ImageSettings(size=40, resize_mode=mode)
    engine = Img2datasetEngine(IngestSettings(source=SourceSettings(paths=()), out="", name="x", image=settings))
    (got,) = engine.fetch([url])
    assert got.image is not None
    image = Image.open(io.BytesIO(got.image))
    assert image.size == expected == (got.width, got.height)
    # Whatever was cut or added, the corner is the red quarter's or a white border.
    corner = np.array(image.getpixel((1, 1)))
    assert np.abs(corner - (WHITE if mode == "border" else RED)).max() < 10


def test_results_stand_in_the_order_of_the_urls(site: Any) -> None:
    urls = [site.add(f"order-{number}", encode(Image.new("RGB", (10 + number, 10)), "PNG")) for number in range(60)]
    urls.insert(30, site.url("nothing"))
    engine = Img2datasetEngine(IngestSettings(source=SourceSettings(paths=()), out="", name="x", threads=8))
    got = engine.fetch(urls)
    widths: list[int | None] = [10 + number for number in range(60)]
    assert [one.width for one in got] == [*widths[:30], None, *widths[30:]]
    assert got[30].error_class == "http_404"
    assert engine.fetch([]) == []


def test_workers_share_nothing_on_the_disk(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine = Img2datasetEngine(IngestSettings(source=SourceSettings(paths=()), out="", name="x"))
    engine.fetch([site.url("nothing")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("HTTP Error 404: Not Found", "http_404"),
        ("HTTP Error 302: Found - Redirection to url 'file:///etc/passwd' is not allowed", "http_302"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error [Errno 111] Connection refused>", "connect"),
        ("<urlopen error [Errno 113] No route to host>", "connect"),
        ("[Errno 104] Connection reset by peer", "connect"),
        ("Remote end closed connection without response", "connect"),
        ("<urlopen error [Errno 110] Connection timed out>", "timeout"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error _ssl.c:983: The handshake operation timed out>", "timeout"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed>", "tls"),
        ("<urlopen error [SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure (_ssl.c:1007)>", "tls"),
        ("IncompleteRead(10 bytes read, 90 more expected)", "truncated"),
        ("URL can't contain control characters. '/a b' (found at least ' ')", "bad_url"),
        ("<urlopen error no host given>", "bad_url"),
        ("nonnumeric port: 'abc'", "bad_url"),
        ("Invalid IPv6 URL", "bad_url"),
        ("'ascii' codec can't encode character '\\xe9' in position 5: ordinal not in range(128)", "bad_url"),
        ("encoding with 'idna' codec failed (UnicodeError: label empty or too long)", "bad_url"),
        ("Use of image disallowed by X-Robots-Tag directive", "opt_out"),
        ("Image decoding error", "not_an_image"),
        ("", "other"),
        ("SSH-2.0-OpenSSH_9.6", "other"),
    ],
)
def test_messages_have_one_cause(message: str, cause: str) -> None:
    assert classify(message) == cause
    assert cause in CAUSES or cause.startswith("http_")
