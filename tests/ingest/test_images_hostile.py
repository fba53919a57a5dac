"""What files made to cost time or memory cost: under two CPU-seconds each, and a worker of 700 MB."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from ingest import ImageSettings
from ingest.images import ImageProcessor

from .hostile import HOSTILE, branching_directories, chunk, overlapping_tags, png_with, progressive

CAUSES = {
    "jpeg: many comments": "bomb",
    "jpeg: nothing but fill bytes": "not_an_image",
    "jpeg: empty scans": "bomb",
    "jpeg: scans in no order": "not_an_image",
    "jpeg: small, scans in no order": "not_an_image",
    "png: many texts": "bomb",
    "png: many pieces": "bomb",
    "png: pieces of a byte": "not_an_image",
    "png: sixteen bits": "bomb",
    "gif: many comments": "killed_worker",
    "gif: one comment": "killed_worker",
    "gif: hundred megapixels": "bomb",
    "webp: hundred megapixels": "bomb",
    "webp: too many frames": "bomb",
    "tiff: many strips": "killed_worker",
    "tiff: deflate": "bomb",
    "jpeg 2000: tiny tiles": "bomb",
    "jpeg 2000: noise": "killed_worker",
    "ppm: one comment": "killed_worker",
    "ppm: numbers": "killed_worker",
    "bmp: hundred megapixels": "truncated",
}
"""Where a file is refused whatever the machine; the others are stored, or take too long on a slow one."""
QUICK = [
    name
    for name in HOSTILE
    if name.startswith("exif")
    or name
    in {
        "jpeg: many comments",
        "jpeg: mpo directory",
        "jpeg: empty scans",
        "jpeg: small, scans in no order",
        "jpeg: comments between scans",
        "png: text that unpacks",
        "png: many texts",
        "png: sixteen bits",
        "webp: too many frames",
        "gif: one comment",
        "tiff: tags that overlap",
        "jpeg 2000: tiny tiles",
    }
]

MEASURED = """
import json, os, resource, sys, time
from pathlib import Path
from ingest import ImageSettings
from ingest.images import ImageProcessor
from tests.ingest.hostile import HOSTILE

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024

processor = ImageProcessor(ImageSettings(exact=sys.argv[2] == "exact"))
body = HOSTILE[sys.argv[1]]() if sys.argv[1] in HOSTILE else Path(sys.argv[1]).read_bytes()
Path("/proc/self/clear_refs").write_text("5")
began = time.process_time()
got = processor.process(body)
seconds = time.process_time() - began
processor.close()
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([got.error_class, seconds, peak(), children.ru_utime + children.ru_stime, children.ru_maxrss // 1024]))
"""


@pytest.fixture(scope="module")
def processor() -> Iterator[ImageProcessor]:
    one = ImageProcessor(ImageSettings())
    yield one
    one.close()


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_file_takes_little_time(name: str, processor: ImageProcessor) -> None:
    """Generously measured: other processes slow this one down."""
    body = HOSTILE[name]()
    began = time.process_time()
    got = processor.process(body)
    assert time.process_time() - began < 4
    if got.error_class or name in CAUSES:
        assert got.error_class == CAUSES[name]
    else:
        assert (got.original_width, got.original_height) == (300, 300)
    assert len(got.exif or "") <= 65_536


@pytest.mark.long
@pytest.mark.parametrize("how", ["cheap", "exact"])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_file_takes_a_worker_over_its_limits(name: str, how: str) -> None:
    # Started by a small process: what it is forked from counts as a child's own peak.
    done = subprocess.run([sys.executable, "-c", MEASURED, name, how], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    cause, seconds, mb, child_seconds, child_mb = json.loads(done.stdout)
    if (name, how) == ("jpeg: scans in no order", "exact"):
        # In full, it takes more memory than there is for one, which shows before its scans are read.
        assert cause == "bomb"
    elif name in CAUSES:
        assert cause == CAUSES[name]
    assert seconds < 4
    # A second of a child's is its start.
    assert child_seconds < 5
    assert mb + child_mb < 700


def test_a_pictures_exif_is_all_that_is_read_for_it(processor: ImageProcessor) -> None:
    """Five thousand tags that each claim the megabytes behind the picture, or two pointers for each step on a way."""
    for body in (overlapping_tags(1_000_000), branching_directories()):
        got = processor.process(body)
        assert (got.status, got.error_message) == ("success", None)
        assert len(got.exif or "") < 2000


@pytest.mark.parametrize("scans", [10, 13])
def test_ordinary_progressive_files_of_any_size_are_stored(scans: int, processor: ImageProcessor) -> None:
    """libjpeg's own script has ten scans; the most that any has in use, of a grey picture, is thirteen."""
    side = 9900 if scans == 10 else 4000
    assert processor.process(progressive(side, scans, valid=True)).status == "success"


def test_a_pngs_notes_are_not_unpacked(processor: ImageProcessor) -> None:
    """Pillow refuses a text of more than 1 MB, where browsers and img2dataset show the picture."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000)))
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2_000_000)))
    plain = processor.process(png_with())
    for body in (png_with(text), png_with(profile, text * 40), png_with(text)[:-12] + text + png_with()[-12:]):
        got = processor.process(body)
        assert (got.status, got.image) == ("success", plain.image)


def test_libraries_do_not_write_into_the_users_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff has the JPEG inside it decoded, which is broken, and says so."""
    sink = io.BytesIO()
    Image.new("RGB", (300, 300)).save(sink, "TIFF", compression="jpeg")
    body = sink.getvalue()
    quantisation = body.index(b"\xff\xdb")
    broken = body[: quantisation + 2] + b"\0\1" + body[quantisation + 4 :]
    processor = ImageProcessor(ImageSettings())
    assert processor.process(broken).error_class in {"not_an_image", "truncated"}
    processor.close()
    # The file is one that makes noise where it can.
    loud = "import io, sys; from PIL import Image; Image.open(io.BytesIO(sys.stdin.buffer.read())).load()"
    done = subprocess.run([sys.executable, "-c", loud], input=broken, capture_output=True, check=False)
    assert b"JPEGLib" in done.stderr
    assert capfd.readouterr() == ("", "")
