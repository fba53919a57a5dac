"""Faces are blurred where their boxes are, whichever way up a picture comes; an unreadable box costs its row."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ingest import ImageSettings, IngestSettings, SourceSettings
from ingest.faces import Boxes, read_boxes
from ingest.images import ImageProcessor
from ingest.images.isolated import IsolatedProcessor
from shards import UserError

BOX: Boxes = ((0.5, 0.125, 0.75, 0.375),)
"""Above the middle to the right, in a picture of 400x400: columns 200 to 300, rows 50 to 150."""


def stripes(**options: Any) -> bytes:
    """Black and white lines of four pixels each: nothing survives a blur of ten pixels."""
    pixels = np.full((400, 400), 255, np.uint8)
    pixels[:, (np.arange(400) // 4) % 2 == 0] = 0
    sink = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(sink, "JPEG", quality=95, **options)
    return sink.getvalue()


def contrast(pixels: np.ndarray) -> float:
    return float(pixels.astype(float).std())


def processed(body: bytes, boxes: Boxes, **settings: Any) -> np.ndarray:
    processor = ImageProcessor(ImageSettings(size=400, resize_mode="no", format="png", quality=1, **settings))
    got = processor.process(body, None, boxes)
    assert got.image is not None, got.error_message
    return np.asarray(Image.open(io.BytesIO(got.image)).convert("L"))


def test_what_is_in_the_box_is_gone_and_the_rest_is_as_it_was() -> None:
    plain, blurred = processed(stripes(), ()), processed(stripes(), BOX)
    assert contrast(plain[50:150, 200:300]) > 100
    assert contrast(blurred[50:150, 200:300]) < 8
    # A tenth of the box is added on each side, over which it fades.
    assert np.array_equal(blurred[:, :150], plain[:, :150])
    assert np.array_equal(blurred[200:], plain[200:])


def test_boxes_are_of_the_picture_as_it_is_stored() -> None:
    """Turned a quarter to the right, what was above to the right is below to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    blurred = processed(stripes(exif=exif), BOX)
    assert contrast(blurred[200:300, 250:350]) < 8
    assert contrast(blurred[50:150, 200:300]) > 100


@pytest.mark.parametrize("boxes", [((0.0, 0.0, 1.0, 1.0),), ((-0.2, 0.9, 1.3, 1.2), (0.1, 0.1, 0.1, 0.1))])
def test_any_box_blurs_in_any_size(boxes: Boxes) -> None:
    for mode in ("keep_ratio", "center_crop", "border"):
        processor = ImageProcessor(ImageSettings(size=60, resize_mode=mode))
        assert processor.process(stripes(), None, boxes).status == "success"
    body = io.BytesIO()
    Image.new("L", (1, 3)).save(body, "PNG")
    assert ImageProcessor(ImageSettings()).process(body.getvalue(), None, boxes).status == "success"


def test_no_original_is_kept_that_has_faces_and_threads_and_processes_agree() -> None:
    settings = ImageSettings(size=400, skip_reencode=True)
    processor = ImageProcessor(settings)
    body = stripes()
    one = processor.process(body, None, BOX)
    assert processor.process(body).image == body != one.image
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: processor.process(body, None, BOX).image, range(12))) == {one.image}
    isolated = IsolatedProcessor(settings)
    assert isolated.process(body, None, BOX) == one
    isolated.close()


@pytest.mark.parametrize("value", [None, "", " ", [], "[]"])
def test_no_faces(value: Any) -> None:
    assert read_boxes(value) == ()


@pytest.mark.parametrize(
    "value",
    [
        "no JSON",
        "{}",
        7,
        [1, 2, 3, 4],
        [[0, 0, 1]],
        [[0, 0, 1, None]],
        [[0, 0, 1, float("nan")]],
        [["0", 0, 1, 1]],
        [[10, 20, 300, 400]],
        [[0.5, 0, 0.4, 1]],
        [[0, 0.5, 1, 0.4]],
        [[True, 0, 1, 1]],
        "[[[[",
        [None],
    ],
)
def test_what_is_no_list_of_boxes_is_an_error(value: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_boxes(value)


def test_a_list_of_faces_is_blurred_or_warned_of(
    site: Any, clipstill_here: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [site.add(f"face/{row}", stripes()) for row in range(3)]
    boxes = pa.array([[list(BOX[0])], [[1.0, 2.0, 300.0, 4.0]], []], pa.list_(pa.list_(pa.float64())))
    pq.write_table(pa.table({"url": urls, "text": ["a", "b", "c"], "face_bboxes": boxes}), tmp_path / "a.parquet")
    common = ["ingest", tmp_path / "a.parquet", "--format", "datacomp", "--name", "set", "--image-size", "400"]
    common += ["--allow-address", "127.0.0.1"]
    done = clipstill_here(*common, "--out", tmp_path / "plain")
    assert done.returncode == 0, done.stderr
    assert caplog.text.count("not blurred without --blur-faces") == 1
    caplog.clear()
    done = clipstill_here(*common, "--out", tmp_path / "blurred", "--blur-faces", "face_bboxes")
    assert done.returncode == 0, done.stderr
    assert "blur" not in caplog.text
    rows = pq.read_table(tmp_path / "blurred" / "00000.parquet").to_pylist()
    assert [row["error_class"] for row in rows] == [None, "bad_boxes", None]
    plain = json.loads((tmp_path / "plain" / "dataset.json").read_text())
    blurred = json.loads((tmp_path / "blurred" / "dataset.json").read_text())
    assert plain["fingerprint"] != blurred["fingerprint"]


def test_the_other_engine_refuses_to_leave_faces_as_they_are() -> None:
    image = ImageSettings(blur_faces="face_bboxes")
    with pytest.raises(UserError, match="blurs no faces"):
        IngestSettings(source=SourceSettings(paths=("a",)), out="o", name="n", image=image, engine="img2dataset")
