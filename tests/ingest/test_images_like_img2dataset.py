"""The exact mode stores img2dataset's bytes, and both modes its sizes: run beside its own resizer and downloader."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ingest import ImageSettings
from ingest.images import ImageProcessor

MODES = ["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"]


@pytest.fixture(scope="module")
def img2dataset() -> Any:
    # albumentations asks a package registry for its newest version on import unless told not to.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import img2dataset.downloader  # noqa: PLC0415
        import img2dataset.resizer  # noqa: PLC0415
    return img2dataset


def resizer(img2dataset: Any, settings: ImageSettings) -> Callable[[bytes], tuple[Any, ...]]:
    """img2dataset's own, by our settings: bytes → image, width, height, original width and height, error."""
    theirs = img2dataset.resizer.Resizer(
        image_size=settings.size,
        resize_mode=settings.resize_mode,
        resize_only_if_bigger=not settings.enlarge,
        encode_quality=settings.quality,
        encode_format=settings.format,
        skip_reencode=settings.skip_reencode,
        min_image_size=settings.min_size,
    )

    def resize(body: bytes) -> tuple[Any, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result: tuple[Any, ...] = theirs(io.BytesIO(body))
        return result

    return resize


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise on them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def see_through(width: int, height: int) -> Image.Image:
    image = picture(width, height).convert("RGBA")
    image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)))
    return image


WIDE, ODD = picture(331, 240), picture(187, 299)
ORIGINALS = {
    "4:2:0": encode(WIDE, "JPEG", quality=90),
    "4:2:2": encode(ODD, "JPEG", quality=90, subsampling="4:2:2"),
    "4:4:4": encode(ODD, "JPEG", quality=95, subsampling="4:4:4"),
    "progressive": encode(ODD, "JPEG", progressive=True),
    "grey jpeg": encode(WIDE.convert("L"), "JPEG"),
    "small jpeg": encode(picture(50, 31), "JPEG"),
    "png": encode(WIDE, "PNG"),
    "grey png": encode(ODD.convert("L"), "PNG"),
    "one-bit png": encode(ODD.convert("1"), "PNG"),
    "palette png": encode(WIDE.quantize(50), "PNG"),
    "png with alpha": encode(see_through(187, 299), "PNG"),
    "grey png with alpha": encode(see_through(331, 240).convert("LA"), "PNG"),
    "webp": encode(WIDE, "WEBP", lossless=True),
    "bmp": encode(ODD, "BMP"),
}


@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_exact_mode_gives_their_bytes(img2dataset: Any, name: str, mode: str, enlarge: bool) -> None:
    settings = ImageSettings(size=100, resize_mode=mode, enlarge=enlarge, exact=True)
    image, width, height, original_width, original_height, error = resizer(img2dataset, settings)(ORIGINALS[name])
    assert error is None
    got = ImageProcessor(settings).process(ORIGINALS[name])
    assert (got.width, got.height) == (width, height)
    assert (got.original_width, got.original_height) == (original_width, original_height)
    assert got.image == image


@pytest.mark.parametrize(("format", "quality"), [("jpg", 30), ("jpg", 100), ("png", 6), ("webp", 80), ("webp", 100)])
@pytest.mark.parametrize("name", ["4:2:0", "grey png", "png with alpha"])
def test_so_it_does_in_every_format(img2dataset: Any, name: str, format: Any, quality: int) -> None:
    settings = ImageSettings(size=90, format=format, quality=quality, exact=True)
    assert ImageProcessor(settings).process(ORIGINALS[name]).image == resizer(img2dataset, settings)(ORIGINALS[name])[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_sizes_are_theirs_whatever_comes_in(img2dataset: Any, mode: str, enlarge: bool, exact: bool) -> None:
    rng = np.random.default_rng(MODES.index(mode) * 4 + enlarge * 2 + exact)
    for size in (1, 2, 37, 64):
        settings = ImageSettings(size=size, resize_mode=mode, enlarge=enlarge, exact=exact, quality=50)
        theirs, ours = resizer(img2dataset, settings), ImageProcessor(settings)
        sides = np.maximum(1, (2 ** rng.uniform(0, 8.5, (60, 2))).astype(int)).tolist()
        for width, height in [*sides, (size, size), (size, size + 1), (size + 1, size), (2 * size + 1, size)]:
            body = encode(Image.new("RGB", (width, height), (9, 99, 200)), "JPEG")
            _, *sizes, error = theirs(body)
            got = ours.process(body)
            assert (error, got.error_message) == (None, None)
            assert [got.width, got.height, got.original_width, got.original_height] == sizes, (width, height, size)


def test_what_they_skip_to_encode_again_so_do_we(img2dataset: Any) -> None:
    settings = ImageSettings(size=240, skip_reencode=True, exact=True)
    for name in ("4:2:0", "small jpeg", "4:4:4", "png"):
        theirs = resizer(img2dataset, settings)(ORIGINALS[name])[0]
        assert ImageProcessor(settings).process(ORIGINALS[name]).image == theirs
        assert (theirs == ORIGINALS[name]) is ("png" not in name)


def test_a_border_is_no_reason_to_skip_encoding(img2dataset: Any) -> None:
    settings = ImageSettings(size=331, resize_mode="border", enlarge=True, skip_reencode=True, exact=True)
    got = ImageProcessor(settings).process(ORIGINALS["4:2:0"])
    assert (got.width, got.height) == (331, 331)
    assert got.image == resizer(img2dataset, settings)(ORIGINALS["4:2:0"])[0]


def test_exif_is_their_string(img2dataset: Any, tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x010F], tags[0x0110], tags[0x0131] = "Maker", "Módel 5 ", 'a "quoted" program'
    tags[0x0132], tags[0x011A] = "2026:01:02 03:04:05", 72.0
    tags.get_ifd(0x8769).update({0x829A: 0.004, 0x9003: "2026:01:02 03:04:05", 0x9286: b"\x01\x02", 0xA002: 331})
    tags.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 36.0)})
    bodies = [
        encode(WIDE, "JPEG", exif=tags),
        encode(WIDE, "JPEG", exif=tags, progressive=True),
        encode(WIDE, "WEBP", exif=tags),
        encode(WIDE, "JPEG"),
        encode(WIDE, "PNG"),
    ]
    found = [ImageProcessor(ImageSettings()).process(body).exif for body in bodies]
    # Where there is no EXIF they store an object without a key.
    assert found == _their_exif(img2dataset, bodies, tmp_path)
    assert found[3:] == ["{}", "{}"]
    assert "Maker" in (found[0] or "")


def _their_exif(img2dataset: Any, bodies: list[bytes], folder: Path) -> list[str]:
    """What img2dataset's downloader hands to its writer, of files on this disk."""
    collected: dict[int, str] = {}

    class Collector:
        def write(self, _image: bytes, key: str, _caption: None, meta: dict[str, Any]) -> None:
            collected[int(key)] = meta["exif"]

        def close(self) -> None:
            pass

    urls = []
    for number, body in enumerate(bodies):
        (folder / f"{number}.bin").write_bytes(body)
        urls.append((folder / f"{number}.bin").as_uri())
    table = pa.table({"url": urls})
    with pa.ipc.new_file(str(folder / "rows.arrow"), table.schema) as sink:
        sink.write_table(table)
    downloader = img2dataset.downloader.Downloader(
        sample_writer_class=lambda *_: Collector(),
        resizer=img2dataset.resizer.Resizer(256, "keep_ratio", True),
        thread_count=1,
        save_caption=False,
        extract_exif=True,
        output_folder=str(folder),
        column_list=["url"],
        timeout=10,
        number_sample_per_shard=len(urls),
        oom_shard_count=1,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        downloader.download_shard((0, str(folder / "rows.arrow")))
    return [collected[number] for number in range(len(bodies))]
