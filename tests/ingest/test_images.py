"""What becomes of images of every kind: upright, in their colours, at their size, or refused with a cause."""

from __future__ import annotations

import functools
import gc
import hashlib
import io
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest import ImageSettings
from ingest.engines.img2dataset_engine import classify
from ingest.fetched import CAUSES, Fetched
from ingest.images import ImageProcessor as _ImageProcessor

ImageProcessor = functools.cache(_ImageProcessor)
"""One for equal settings: some images are decoded in processes that each has of its own."""

RED, GREEN, BLUE, GREY, WHITE = (200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90), (255, 255, 255)
UPRIGHT = [RED, GREEN, BLUE, GREY]
GONE = [WHITE, GREEN, BLUE, GREY]
"""The red quarter is transparent, and so white."""


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
    wide = (pixels.astype(np.uint16) * 256 + 7).astype(">u2") if depth == 16 else pixels
    colour = {2: 0, 3: 2}[pixels.ndim]
    header = struct.pack(">IIBBBBB", image.width, image.height, depth, colour, 0, 0, 0)
    transparent = b"" if key is None else chunk(b"tRNS", b"".join(struct.pack(">H", value) for value in key))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in wide))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + transparent + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def turned(orientation: int, kind: str = "JPEG") -> bytes:
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
    return encode(quarters().transpose(undo[orientation]), kind, exif=exif)


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
        GONE,
    ),
    "png with alpha": (encode(see_through(), "PNG"), GONE),
    "grey png with alpha": (encode(see_through().convert("LA"), "PNG"), [WHITE, *LIGHT[1:]]),
    "16-bit png": (png(quarters(), depth=16), UPRIGHT),
    "16-bit grey png": (png(quarters().convert("L"), depth=16), LIGHT),
    "png with a transparent colour": (png(quarters(), depth=8, key=RED), GONE),
    "grey png with a transparent grey": (png(quarters().convert("L"), depth=8, key=LIGHT[0][:1]), [WHITE, *LIGHT[1:]]),
    "one-bit png": (
        encode(Image.fromarray(np.asarray(quarters())[:, :, 1] > 100), "PNG"),
        [(0,) * 3, WHITE, (0,) * 3, (0,) * 3],
    ),
    "animated png": (encode(quarters(), "PNG", save_all=True, append_images=[quarters().rotate(180)]), UPRIGHT),
    "gif": (encode(quarters(), "GIF"), UPRIGHT),
    "animated gif": (encode(quarters(), "GIF", save_all=True, append_images=[quarters().rotate(180)]), UPRIGHT),
    "webp": (encode(quarters(), "WEBP"), UPRIGHT),
    "webp with alpha": (encode(see_through(), "WEBP", lossless=True), GONE),
    "animated webp": (
        encode(quarters(), "WEBP", lossless=True, save_all=True, append_images=[quarters().rotate(180)]),
        UPRIGHT,
    ),
    "bmp": (encode(quarters(), "BMP"), UPRIGHT),
    "tiff": (encode(quarters(), "TIFF"), UPRIGHT),
    "tiff orientation 6": (turned(6, "TIFF"), UPRIGHT),
    "png orientation 8": (turned(8, "PNG"), UPRIGHT),
    "webp orientation 5": (turned(5, "WEBP"), UPRIGHT),
    "avif": (encode(quarters(), "AVIF"), UPRIGHT),
    "jpeg 2000": (encode(quarters(), "JPEG2000"), UPRIGHT),
    "ppm": (encode(quarters(), "PPM"), UPRIGHT),
    "jpeg with bytes before a marker": (
        encode(quarters(), "JPEG").replace(b"\xff\xda", b"junk\xff\xda", 1),
        UPRIGHT,
    ),
    "jpeg with bytes after its end": (encode(quarters(), "JPEG") + b"<!-- served by -->", UPRIGHT),
    "16-bit png with a transparent colour": (png(quarters(), depth=16, key=tuple(256 * c + 7 for c in RED)), GONE),
    "16-bit grey png with a transparent grey": (
        png(quarters().convert("L"), depth=16, key=(256 * LIGHT[0][0] + 7,)),
        [WHITE, *LIGHT[1:]],
    ),
    "cmyk tiff": (encode(quarters().convert("CMYK"), "TIFF"), UPRIGHT),
}


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated a thousand times."""
    body = encode(quarters(), "JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    return body[:-2] + body[last:-2] * 1000 + body[-2:]


def many_colours() -> bytes:
    """A JPEG whose frame header stands there four hundred times."""
    body = encode(quarters(), "JPEG")
    frame = body.index(b"\xff\xc0")
    return body[:frame] + body[frame : frame + 19] * 400 + body[frame + 19 :]


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
    "too many pixels in a jpeg": (encode(LARGE, "JPEG"), "bomb"),
    "too many pixels in a webp": (encode(LARGE, "WEBP"), "bomb"),
    "icon": (encode(quarters(), "ICO"), "not_an_image"),
    "jpeg cut and closed": (encode(noise, "JPEG")[:-4000] + b"\xff\xd9", "truncated"),
    "cmyk jpeg cut and closed": (encode(noise.convert("CMYK"), "JPEG")[:-4000] + b"\xff\xd9", "truncated"),
    "truncated webp": (encode(noise, "WEBP")[:-4000], "truncated"),
    "truncated avif": (encode(noise, "AVIF")[:-4000], "not_an_image"),
    "jpeg of many scans": (many_scans(), "bomb"),
    "jpeg without sampling": (encode(quarters(), "JPEG").replace(b"\1\x22\0", b"\1\0\0", 1), "not_an_image"),
    "jpeg with a thousand colours": (many_colours(), "not_an_image"),
    "far too many pixels": (encode(Image.new("1", (20_000, 20_000)), "PNG"), "bomb"),
}


def pixels_of(got: Fetched) -> np.ndarray:
    assert got.error_class is None, got.error_message
    assert got.image is not None
    return np.asarray(Image.open(io.BytesIO(got.image)).convert("RGB")).astype(int)


SETTINGS = ImageSettings(size=40, max_bytes=200_000, max_pixels=1_000_000)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"", "it is empty"),
        (b"\r\n<!doctype HTML><title>Gone</title>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(200), "a video"),
        (encode(quarters(), "ICO"), "an icon"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(200), None),
        (b"nothing that anybody knows", None),
    ],
)
def test_what_is_no_picture_is_named(body: bytes, name: str | None) -> None:
    got = ImageProcessor(SETTINGS).process(body)
    assert got.error_class == "not_an_image"
    if name is None:
        assert "(" not in str(got.error_message)
    else:
        assert got.error_message == f"cannot identify image file ({name})"


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", GOOD)
def test_good_images_are_upright_and_in_their_colours(name: str, exact: bool) -> None:
    body, colours = GOOD[name]
    got = ImageProcessor(replace(SETTINGS, exact=exact)).process(body)
    assert (got.status, got.error_class, got.error_message) == ("success", None, None)
    assert got.image is not None
    image = Image.open(io.BytesIO(got.image))
    assert image.format == "JPEG"
    assert image.size == (got.width, got.height)
    # The shorter side became 40, and the sizes are those of the upright picture.
    assert (got.width, got.height) == (53, 40)
    assert (got.original_width, got.original_height) == (80, 60)
    assert got.digest == hashlib.sha256(body).hexdigest()
    assert got.bytes == len(body)
    pixels = pixels_of(got)
    quarter = [pixels[3:17, 3:23], pixels[3:17, 30:50], pixels[23:37, 3:23], pixels[23:37, 30:50]]
    for part, colour in zip(quarter, colours, strict=True):
        assert np.abs(part.mean(axis=(0, 1)) - colour).max() < 10
        assert np.abs(part - part.mean(axis=(0, 1))).max() < 40


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_their_cause(name: str, exact: bool) -> None:
    body, cause = BAD[name]
    got = ImageProcessor(replace(SETTINGS, exact=exact)).process(body)
    status = "failed_to_download" if cause == "too_large" else "failed_to_resize"
    assert (got.image, got.error_class, got.status, got.bytes) == (None, cause, status, len(body))
    assert got.error_message
    assert "\n" not in got.error_message
    # An address in memory would make the ledger differ from run to run.
    assert " at 0x" not in got.error_message
    assert ImageProcessor(SETTINGS).process(bytes(bytearray(body))).error_message == got.error_message


@pytest.mark.parametrize(
    ("mode", "enlarge", "size", "expected"),
    [
        ("keep_ratio", False, (80, 60), (53, 40)),
        ("keep_ratio", False, (30, 20), (30, 20)),
        ("keep_ratio", True, (30, 20), (60, 40)),
        ("keep_ratio_largest", False, (80, 60), (40, 30)),
        ("keep_ratio_largest", True, (30, 20), (40, 27)),
        ("center_crop", False, (80, 60), (40, 40)),
        ("center_crop", False, (30, 20), (30, 20)),
        ("center_crop", True, (30, 20), (40, 40)),
        ("border", False, (80, 60), (40, 40)),
        ("border", False, (30, 20), (30, 20)),
        ("border", True, (30, 20), (40, 40)),
        ("no", False, (80, 60), (80, 60)),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_resize_modes(mode: str, enlarge: bool, size: tuple[int, int], expected: tuple[int, int], exact: bool) -> None:
    settings = ImageSettings(size=40, resize_mode=mode, enlarge=enlarge, exact=exact)
    got = ImageProcessor(settings).process(encode(quarters(size[1], size[0]), "PNG"))
    pixels = pixels_of(got)
    assert pixels.shape == (expected[1], expected[0], 3) == (got.height, got.width, 3)
    # Whatever was cut or added, the corner is the red quarter's or a white border.
    bordered = mode == "border" and expected == (40, 40)
    assert np.abs(pixels[1, 1] - (WHITE if bordered else RED)).max() < 10
    # And the middle is where the four meet.
    assert np.abs(pixels[expected[1] // 2 + 4, expected[0] // 2 + 4] - GREY).max() < 10


@pytest.mark.parametrize("mode", ["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exact", [False, True])
def test_every_orientation_in_every_mode_is_the_upright_picture(mode: str, orientation: int, exact: bool) -> None:
    """The picture is scaled to a third, so that JPEG is decoded at a half where it may be."""
    process = ImageProcessor(ImageSettings(size=20, resize_mode=mode, exact=exact)).process
    upright = encode(quarters(), "JPEG")
    got = process(upright if orientation == 1 else turned(orientation))
    expected = pixels_of(process(upright))
    assert (got.original_width, got.original_height) == (80, 60)
    assert pixels_of(got).shape == expected.shape
    assert np.abs(pixels_of(got) - expected).mean() < 4


@pytest.mark.parametrize(("format", "quality"), [("jpg", 60), ("jpg", 95), ("png", 0), ("png", 9), ("webp", 80)])
def test_formats_and_qualities(format: Any, quality: int) -> None:
    got = ImageProcessor(ImageSettings(size=100, format=format, quality=quality)).process(encode(noise, "PNG"))
    assert got.image is not None
    image = Image.open(io.BytesIO(got.image))
    assert (image.format, got.extension) == ({"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[format], format)
    image.load()
    assert image.size == (150, 100)
    if format == "jpg":
        # 4:2:0, and the first entry of the luminance table as the standard scales it: 16 at quality 50.
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]
        assert image.quantization[0][0] == round(16 * (200 - 2 * quality) / 100)  # type: ignore[attr-defined]


def test_a_higher_png_compression_gives_fewer_bytes_and_the_same_pixels() -> None:
    body = encode(quarters(), "PNG")
    fast, small = (ImageProcessor(ImageSettings(format="png", quality=level)).process(body) for level in (0, 9))
    assert fast.image is not None
    assert small.image is not None
    assert len(small.image) < len(fast.image)
    assert np.array_equal(pixels_of(fast), np.asarray(quarters()))
    assert np.array_equal(pixels_of(small), np.asarray(quarters()))


@pytest.mark.parametrize("hash_name", ["md5", "sha256", "sha512"])
def test_hashes(hash_name: Any) -> None:
    body = encode(quarters(), "PNG")
    process = ImageProcessor(ImageSettings(hash=hash_name)).process
    digest = hashlib.new(hash_name, body).hexdigest()
    assert process(body).digest == digest
    assert process(body, digest).status == "success"
    wrong = process(body, digest[::-1])
    assert (wrong.image, wrong.error_class) == (None, "hash_mismatch")
    # What the input promises is checked before the bytes are looked at.
    assert process(b"no image", digest).error_class == "hash_mismatch"


@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        ({"min_size": 60}, None),
        ({"min_size": 61}, "filtered_size"),
        ({"max_area": 4800}, None),
        ({"max_area": 4799}, "filtered_area"),
        ({"max_aspect_ratio": 1.34}, None),
        ({"max_aspect_ratio": 1.33}, "filtered_aspect"),
    ],
)
@pytest.mark.parametrize("orientation", [3, 6])
def test_filters_see_the_original(limits: dict[str, Any], refused: str | None, orientation: int) -> None:
    body = turned(orientation)
    assert ImageProcessor(ImageSettings(size=40, **limits)).process(body).error_class == refused
    # They are judged by the header: the pixels need not be there.
    if refused:
        assert ImageProcessor(ImageSettings(size=40, **limits)).process(body[:-300]).error_class == refused


@pytest.mark.parametrize(
    ("kind", "format", "kept"),
    [("JPEG", "jpg", True), ("PNG", "png", True), ("WEBP", "webp", True), ("PNG", "jpg", False)],
)
def test_an_original_that_needs_no_change_is_stored_as_it_came(kind: str, format: Any, kept: bool) -> None:
    body = encode(quarters(), kind)
    quality = {"quality": 6} if format == "png" else {}
    keep = ImageSettings(size=60, format=format, skip_reencode=True, **quality)
    got = ImageProcessor(keep).process(body)
    assert (got.image == body) is kept
    assert ImageProcessor(replace(keep, skip_reencode=False)).process(body).image != body
    assert ImageProcessor(replace(keep, size=59)).process(body).image != body
    assert ImageProcessor(keep).process(body[: len(body) // 2]).image is None


@pytest.mark.parametrize(
    "name",
    [
        "jpeg orientation 3",
        "cmyk jpeg",
        "mpo",
        "palette png",
        "png with alpha",
        "16-bit png",
        "png with a transparent colour",
        "animated png",
        "animated webp",
    ],
)
def test_what_readers_would_see_otherwise_is_encoded_again(name: str) -> None:
    body, _ = GOOD[name]
    format: Any = next(short for short in ("png", "webp", "jpg") if short in name or short == "jpg")
    quality = {"quality": 6} if format == "png" else {}
    got = ImageProcessor(ImageSettings(format=format, size=100, skip_reencode=True, **quality)).process(body)
    assert got.image is not None
    assert got.image != body
    image = Image.open(io.BytesIO(got.image))
    assert image.mode == "RGB"
    assert not getattr(image, "is_animated", False)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("exact", [False, True])
def test_truncated_data_is_refused_wherever_it_ends(kind: str, exact: bool) -> None:
    body = encode(noise, "JPEG", progressive=True) if kind == "progressive" else encode(noise, kind)
    # The end marker, and PNG's last chunk with the checksum before it, hold no pixels.
    last = len(body) - {"PNG": 20, "JPEG": 4}.get(kind, 3)
    process = ImageProcessor(ImageSettings(size=60, exact=exact, max_bytes=10**7)).process
    cuts = [*range(0, 700, 23), *range(700, last, max(1, last // 60)), *range(last - 40, last, 5)]
    causes = {cut: process(body[:cut]).error_class for cut in cuts}
    assert process(body).error_class is None
    assert set(causes.values()) <= {"truncated", "not_an_image"}
    assert {cause for cut, cause in causes.items() if cut > 1000} == {"truncated"}


def test_threads_give_what_one_gives() -> None:
    bodies = [body for body, _ in [*GOOD.values(), *BAD.values()]]
    bodies += [encode(noise.resize((600 + seed, 480)), "JPEG") for seed in range(4)]
    processor = ImageProcessor(SETTINGS)
    alone = [processor.process(body) for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(processor.process, bodies * 5)) == alone * 5


def test_exif_is_stored_as_json_whether_there_is_any_or_not() -> None:
    process = ImageProcessor(ImageSettings()).process
    assert process(turned(6)).exif == '{"Image Orientation": "Rotated 90 CW"}'
    assert process(encode(quarters(), "JPEG")).exif == "{}"
    assert process(GOOD["jpeg with garbage for exif"][0]).exif == "{}"
    # exifread knows nothing of PNG.
    assert process(turned(6, "PNG")).exif == "{}"
    off = ImageProcessor(ImageSettings(exif=False)).process(turned(6))
    assert (off.exif, off.original_width, off.original_height) == ("{}", 80, 60)


def test_a_ribbon_is_refused_before_it_grows() -> None:
    """Its shorter side of one pixel made 256 would make the longer one 7.7 million."""
    got = ImageProcessor(ImageSettings(enlarge=True)).process(encode(Image.new("RGB", (30_000, 1)), "PNG"))
    assert got.error_class == "filtered_aspect"
    flat = ImageProcessor(ImageSettings(resize_mode="border")).process(encode(Image.new("RGB", (30_000, 1)), "PNG"))
    assert (flat.width, flat.height) == (256, 256)


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
        ("IncompleteRead(10 bytes read, 90 more expected)", "incomplete"),
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


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_a_body_is_let_go_at_once(name: str) -> None:
    """Large ones would fill the memory until the next collection, which is far off in a loop that makes no cycles."""
    body = bytes(bytearray({**GOOD, **BAD}[name][0]))
    process = ImageProcessor(ImageSettings(size=40, max_bytes=200_000, max_pixels=1_000_000)).process
    process(body)
    gc.collect()
    gc.disable()
    try:
        before = sys.getrefcount(body)
        process(body)
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()
