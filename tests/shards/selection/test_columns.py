"""Sizes of images whose metadata does not tell them, by their headers."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from shards import Dataset, InProcess, UserError
from shards.adopt import AdoptSettings, adopt, find_tars
from shards.selection.columns import Columns


def adopted(folder: Path, image: bytes, extension: str) -> Columns:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in {f"a.{extension}": image, "a.txt": b"one"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    patterns = (str(folder / "x.tar"),)
    adopt(AdoptSettings(patterns=patterns, out=str(folder / "out")), find_tars(patterns), InProcess())
    return Columns(Dataset.open(str(folder / "out")).shards[0], ())


def test_sides_are_of_the_picture_as_it_is_shown(tmp_path: Path) -> None:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(out, "JPEG", exif=exif)
    columns = adopted(tmp_path, out.getvalue(), "jpg")
    assert [columns[name].to_pylist() for name in ("width", "height", "short_side")] == [[30], [40], [30]]
    assert columns["aspect"].to_pylist() == [pytest.approx(4 / 3)]


def test_a_header_of_too_many_pixels_is_told_in_a_line(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    columns = adopted(tmp_path, b"\x89PNG\r\n\x1a\n" + chunk, "png")
    with pytest.raises(UserError, match=r"x\.tar: the image of a has no header that is read"):
        columns["width"]
