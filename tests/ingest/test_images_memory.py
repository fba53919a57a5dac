"""No image makes a process large: what would is refused from its header, and large ones are decoded in turn."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ingest import ImageSettings
from ingest.images import ImageProcessor

GREY_AND_ALPHA, RGB = 4, 2


def png(width: int, height: int, colour: int, pixels: bytes) -> bytes:
    """With whatever compressed `pixels` there are. `colour` is PNG's colour type; 8 bits each."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# What the libraries themselves take differs between machines, so only what the large image adds is counted.
MEASURED = """
import io, sys, threading
from pathlib import Path
from PIL import Image
from ingest import ImageSettings
from ingest.images import ImageProcessor

def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

processor = ImageProcessor(ImageSettings(exact=sys.argv[2] == "exact"))
for format in ("PNG", "JPEG"):
    small = io.BytesIO()
    Image.new("RGB", (600, 600)).save(small, format)
    processor.process(small.getvalue())
before = peak_kib()
body = Path(sys.argv[1]).read_bytes()
widths = []
threads = [threading.Thread(target=lambda: widths.append(processor.process(body).width)) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*widths, peak_kib() - before)
"""


def large_png() -> bytes:
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(bytes(1 + 3 * 8000)) for _ in range(8000)) + packer.flush()
    return png(8000, 8000, RGB, pixels)


def large_sloppy_jpeg() -> bytes:
    """libjpeg-turbo warns of the bytes before a marker, and Pillow decodes it."""
    sink = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(sink, "JPEG")
    return sink.getvalue().replace(b"\xff\xda", b"junk\xff\xda", 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak there")
@pytest.mark.parametrize(
    ("make", "how", "most_mb"),
    # The PNG's pixels are 192 MB: room for one at a time. The JPEG's are 108 MB: not even one, it is decoded smaller.
    [(large_png, "cheap", 400), (large_png, "exact", 400), (large_sloppy_jpeg, "cheap", 60)],
)
def test_two_threads_with_a_large_image_each_stay_small(
    tmp_path: Path, make: Callable[[], bytes], how: str, most_mb: int
) -> None:
    (tmp_path / "large").write_bytes(make())
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "large"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    *widths, added_kib = done.stdout.split()
    assert widths == ["256", "256"]
    assert int(added_kib) * 1024 < most_mb * 1e6


def test_what_needs_too_much_memory_is_refused_from_its_header() -> None:
    process = ImageProcessor(ImageSettings()).process
    # Grey with alpha becomes RGBA on the way: the same pixels need three times as much as RGB.
    assert process(png(7000, 7000, RGB, b"")).error_class == "truncated"
    refused = process(png(7000, 7000, GREY_AND_ALPHA, b""))
    assert (refused.error_class, refused.error_message) == (
        "bomb",
        "588 MB needed to decode it, the limit is 320",
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 13_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    """Of the first two Pillow would only warn."""
    assert ImageProcessor(ImageSettings(max_pixels=10**8)).process(png(side, side, RGB, b"")).error_class == "bomb"
