"""One reading of pictures for ingest and for views: what is damaged is refused by both, never as a mistake of ours."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from ingest.images import ImageProcessor
from ingest.settings import ImageSettings
from pictures import RefusedError
from pictures.jpeg_header import read_header
from teacher_cache.views import EncodedImage


def jpeg(**options: object) -> bytes:
    sink = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    Image.fromarray(noise).save(sink, "JPEG", **options)
    return sink.getvalue()


PLAIN = jpeg()
SCAN = PLAIN.index(b"\xff\xda")
DAMAGED = {
    "cut off": PLAIN[: len(PLAIN) // 2],
    "cut off and closed": PLAIN[: len(PLAIN) // 2] + b"\xff\xd9",
    "progressive, cut off": jpeg(progressive=True)[:-3000],
    "a scan without a header": PLAIN[:SCAN] + b"\xff\xda\x00\x02",
    "ends after a marker": PLAIN[:SCAN] + b"\xff\xda",
    "no frame": PLAIN[:2] + PLAIN[SCAN:],
    "two frames": PLAIN.replace(frame := PLAIN[PLAIN.index(b"\xff\xc0") :][:19], frame * 2),
    "no size": PLAIN.replace(struct.pack(">HH", 120, 160), struct.pack(">HH", 0, 160), 1),
    "a length beyond its end": PLAIN[:20] + b"\xff\xfe\xff\xff",
    "a kind of file that nobody wants": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_refused_by_both(name: str) -> None:
    processor = ImageProcessor(ImageSettings())
    try:
        fetched = processor.process(DAMAGED[name])
    finally:
        processor.close()
    assert fetched.image is None
    assert fetched.error_class in {"truncated", "not_an_image", "bomb"}
    with pytest.raises(OSError, match=r"."):
        EncodedImage(DAMAGED[name]).pixels()


@pytest.mark.parametrize("end", range(2, SCAN + 4, 7))
def test_a_header_that_ends_early_is_refused_with_its_cause(end: int) -> None:
    with pytest.raises(RefusedError, match=r"ends in its header") as refused:
        read_header(PLAIN[:end])
    assert refused.value.cause == "not_an_image"


def test_stray_bytes_and_padding_before_a_marker_do_not_hide_it() -> None:
    for between in (b"\xff", b"\xff\xff\xff", b"\x00\x17", b"\xff\x00"):
        header = read_header(PLAIN[:SCAN] + between + PLAIN[SCAN:])
        assert (header.width, header.height, header.scans) == (160, 120, 1)
        assert header.start == read_header(PLAIN).start + len(between)
